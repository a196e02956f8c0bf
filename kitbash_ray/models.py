"""The cache of model files: pulling them from the Hugging Face hub or an address, finding, listing, removing.

    <cache_dir>/models/<owner>--<name>/<file>             a file of a hub repository
    <cache_dir>/models/<owner>--<name>@<revision>/<file>  ... of a revision that was asked for
    <cache_dir>/models/<host>/<path>                      a file from anywhere else
    ... .partial, .partial.tag                            a pull that was interrupted (download.py)
    <cache_dir>/models/.locks/                            who is pulling; a lock file is never deleted, that would break it

A file gets its name when it is whole, so what is there is never looked at again. A model in several parts
(`-00001-of-00003.gguf`) is one model, named by its first part. Not here: loading models (engines), and talking
about what happens (cli/models.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from kitbash_ray.download import Remote, Report, check_space, download, drop, partial_of, size_of
from kitbash_ray.engines.gguf_header import Header, is_gguf, read_header
from kitbash_ray.errors import ModelError
from kitbash_ray.hub import look_up

#: What llama.cpp's gguf-split appends to the parts of a model.
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
#: More parts than any model has; a name must not make us ask for 99,999 files.
MOST_PARTS = 999
#: Bytes that are read at once for a checksum.
CHUNK = 1 << 20
REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*(@[\w./%+-]+)?", re.ASCII)
#: A file's page or address on the hub, as people copy it from a browser.
PAGE = re.compile(r"/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/(.+)")
HUB_HOSTS = {"huggingface.co", "hf.co", "www.huggingface.co"}
SHAPE = "write it as owner/name/file.gguf, like bartowski/Qwen2.5-0.5B-Instruct-GGUF/Qwen2.5-0.5B-Instruct-Q4_K_M.gguf"


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a file of a hub repository, or an address."""

    repo: str
    file: str
    revision: str | None = None
    #: Set for a file from anywhere but the hub; `repo` is its host then.
    url: str | None = None

    @property
    def folder(self) -> str:
        return self.repo.replace("/", "--") + (f"@{quote(self.revision, safe='')}" if self.revision else "")

    @property
    def name(self) -> str:
        """What `list` shows, and what every other command takes."""
        return _name(self.folder, self.file)


@dataclass(frozen=True)
class Pulled:
    """A model that is there now. `fresh` is whether this pull brought any of it."""

    path: Path
    size: int
    fresh: bool


@dataclass(frozen=True)
class Model:
    """A model in the cache. `path` is its first part, `header` None if that is damaged."""

    name: str
    path: Path
    size: int
    #: False while parts are missing: the pull was interrupted.
    whole: bool
    header: Header | None = None


def read_source(text: str, revision: str | None = None) -> Source:
    """`owner/name/file.gguf` or an address. Raises ModelError when it is neither."""
    if "://" in text:
        return _from_url(text, revision)
    owner, _, rest = text.partition("/")
    name, _, file = rest.partition("/")
    name, _, tagged = name.partition("@")
    if not REPOSITORY.fullmatch(f"{owner}/{name}") or not file:
        raise ModelError(f"{text!r} names no file of a repository; {SHAPE}.")
    return Source(f"{owner}/{name}", _first(_safe(file, text)), revision or unquote(tagged) or None)


def pull(
    source: Source,
    cache_dir: Path,
    report: Report,
    *,
    waiting: Callable[[], None] = lambda: None,
    endpoint: str | None = None,
) -> Pulled:
    """Bring all files of a model, where they are not there yet. `waiting` is told of another pull of the same model.

    Raises ModelError with one sentence. What was downloaded by then stays, and the next pull goes on with it.
    """
    targets = [_models(cache_dir) / source.folder / file for file in _parts(source.file)]
    fresh = False
    if not all(target.is_file() for target in targets):
        _make_folder(targets[0].parent)
        with _alone(source.name, cache_dir, waiting):
            missing = [target for target in targets if not target.is_file()]
            remotes = [_remote(source, str(PurePosixPath(source.file).with_name(path.name)), endpoint) for path in missing]
            left = [(remote.size or 0) - size_of(partial_of(path)) for remote, path in zip(remotes, missing, strict=True)]
            check_space(targets[0].parent, sum(left))
            for remote, target in zip(remotes, missing, strict=True):
                download(remote, partial_of(target), report)
                _check(remote, target, report)
                partial_of(target).replace(target)
                drop(partial_of(target))
                fresh = True
    return Pulled(targets[0], sum(map(size_of, targets)), fresh)


def resolve(model: str | Path, cache_dir: Path) -> Path:
    """The file that a setting means: a path, or the name of a pulled model.

    Raises ModelError for `owner/name/file.gguf` that is not pulled. Any other path is returned as it is, there or not.
    """
    path = Path(model).expanduser()
    if path.exists() or path.is_absolute():
        return path
    name = path.as_posix()
    places = [_models(cache_dir) / path] if len(path.parts) > 1 and ".." not in path.parts else []
    with suppress(ModelError):  # it names no model: then it is a path
        source = read_source(name)
        places.append(_models(cache_dir) / source.folder / source.file)
    for place in places:
        if place.is_file() and all(place.with_name(part).is_file() for part in _parts(place.name)):
            return place
    if len(places) > 1:
        raise ModelError(f"The model {name} is not here yet: kitbash models pull {name}")
    return path


def installed(cache_dir: Path) -> list[Model]:
    """Every model of the cache by name, those too whose pull was interrupted."""
    return [_model(name, files) for name, files in sorted(_files(_models(cache_dir)).items())]


def remove(name: str, cache_dir: Path) -> Model:
    """Delete a model, whole or not. Raises ModelError when there is none of that name."""
    model = find(name, cache_dir)
    with _alone(model.name, cache_dir):
        try:
            for part in _parts(model.path.name):
                path = model.path.with_name(part)
                path.unlink(missing_ok=True)
                drop(partial_of(path))
        except OSError as error:
            raise ModelError(f"{path} cannot be deleted: {error.strerror}.") from error
    for folder in model.path.parents:
        if folder == _models(cache_dir) or any(folder.iterdir()):
            break
        folder.rmdir()
    return model


def find(name: str, cache_dir: Path) -> Model:
    """The model of that name; its file name is enough where no other has the same."""
    models = installed(cache_dir)
    found = [model for model in models if model.name == name] or [model for model in models if model.path.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(f"Several models are called {name}; say which: {', '.join(model.name for model in found)}.")
    raise ModelError(f"There is no model {name!r}; `kitbash models list` shows those that are there.")


# Names


def _from_url(text: str, revision: str | None) -> Source:
    url = urlsplit(text)
    path = unquote(url.path)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ModelError(f"{text!r} is no address of a file; write it as https://host/path/file.gguf.")
    if url.hostname in HUB_HOSTS and (page := PAGE.fullmatch(path)):
        repo, at, file = page.groups()
        wanted = revision or (None if at == "main" else at)
        return Source(repo, _first(_safe(file, text)), wanted)
    if revision:
        raise ModelError("--revision is for repositories of the hub; an address has none, so leave it out.")
    host = url.netloc.rpartition("@")[2]
    return Source(host, _first(_safe(path.lstrip("/"), text)), url=text)


def _safe(file: str, text: str) -> str:
    """`file` if it is a GGUF by its name and stays inside its folder."""
    if not file.endswith(".gguf") or "\\" in file or any(part in ("", ".", "..") for part in file.split("/")):
        raise ModelError(f"{text!r} names no GGUF file; {SHAPE}.")
    return file


def _parts(file: str) -> list[str]:
    """All parts of the model that `file` is a part of; `file` alone if there is one only."""
    match = PART.fullmatch(file)
    if not match or not 1 <= int(match[3]) <= MOST_PARTS:
        return [file]
    return [f"{match[1]}-{part:05}-of-{match[3]}.gguf" for part in range(1, int(match[3]) + 1)]


def _first(file: str) -> str:
    return _parts(file)[0]


def _name(folder: str, file: str) -> str:
    owner, dashes, rest = folder.partition("--")
    return f"{owner}/{rest}/{file}" if dashes and "." not in owner else f"{folder}/{file}"


# Pulling


def _remote(source: Source, file: str, endpoint: str | None) -> Remote:
    if source.url is None:
        return look_up(source.repo, file, source.revision, endpoint=endpoint)
    folder, _, last = source.url.partition("?")[0].rpartition("/")
    query = source.url.partition("?")[2]
    name = quote(PurePosixPath(file).name) if unquote(last) != PurePosixPath(file).name else last
    return Remote(f"{folder}/{name}" + (f"?{query}" if query else ""))


def _check(remote: Remote, target: Path, report: Report) -> None:
    """Raises ModelError, and deletes what came, when it is not what the hub promised or no GGUF."""
    partial, problem = partial_of(target), None
    if not is_gguf(partial):
        problem = "is no GGUF file (its first four bytes are not 'GGUF'); choose a .gguf of the repository"
    elif remote.size is not None and size_of(partial) != remote.size:
        problem = f"has {size_of(partial):,} bytes where the hub says {remote.size:,}; pull it again"
    elif remote.sha256 and _sha256(partial, report) != remote.sha256:
        problem = "differs from what the hub has (another SHA-256); pull it again, over another network if it stays so"
    if problem:
        drop(partial)
        raise ModelError(f"What came as {target.name} was deleted because it {problem}.")


def _sha256(path: Path, report: Report) -> str:
    digest, done, total = hashlib.sha256(), 0, size_of(path)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(f"checking {path.name.removesuffix('.partial')}", done, total)
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{folder} cannot be made: {error.strerror}; set KITBASH_CACHE_DIR to another folder.") from error


@contextmanager
def _alone(name: str, cache_dir: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """No other process pulls or removes the model meanwhile; without `waiting`, not waited for."""
    from filelock import FileLock, Timeout

    folder = _models(cache_dir) / ".locks"
    _make_folder(folder)
    lock = FileLock(folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise ModelError(f"{name} is being pulled at this moment; stop that first.") from None
        waiting()
        lock.acquire()
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()


# Finding


def _models(cache_dir: Path) -> Path:
    return cache_dir / "models"


def _files(models: Path) -> dict[str, list[Path]]:
    """What is there of each model, whole files and partial ones, by the model's name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(models.glob("*/**/*")):
        file = path.name.removesuffix(".partial")
        if file.endswith(".gguf") and path.is_file():
            folder, *below = path.relative_to(models).parts
            found.setdefault(_name(folder, "/".join([*below[:-1], _first(file)])), []).append(path)
    return found


def _model(name: str, files: list[Path]) -> Model:
    path = files[0].with_name(_first(files[0].name.removesuffix(".partial")))
    whole = all(path.with_name(part).is_file() for part in _parts(path.name))
    try:
        header = read_header(path) if whole else None
    except ModelError:  # shown as damaged; the others are listed all the same
        header = None
    return Model(name, path, sum(map(size_of, files)), whole, header)
