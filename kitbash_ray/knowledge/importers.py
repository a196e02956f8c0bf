"""Other people's files as the passages of a cartridge: one file, or a folder of them.

`<cartridges>/<name>/` gets cartridge.toml, passages.jsonl and imported.json, which remembers the
files, so that importing again reads only those that changed. The cartridge changes as a whole or
not at all. What a file holds is the affair of readers/. Not here: facts.yaml, which only people write.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import FACTS, MANIFEST, NAME, PASSAGES, FactId, PassageEntry, validated
from kitbash_ray.knowledge.readers import READERS, TABLES
from kitbash_ray.knowledge.readers.prose import Raw

#: What the last import read.
STATE = "imported.json"
#: Folders that hold no documents; hidden ones are passed over as well.
PASSED_OVER = frozenset({"node_modules", "__pycache__", "venv", "site-packages"})
#: Bytes of a file between two calls of `progress`.
PROGRESS_BYTES = 1 << 16
_NOT_ID = re.compile(r"[^A-Za-z0-9._-]+")

#: Called with (bytes done, bytes in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_path` made.

    `read` files were new or changed, `kept` had not changed, `gone` were there the last time.
    `left_out` has a sentence for each file of a folder that could not be read. `skipped` passages
    repeated an earlier one of their file word for word, `renamed` ids held characters that an id
    cannot have, and `example` is something to ask, if the files say.
    """

    folder: Path
    passages: int
    read: tuple[str, ...]
    kept: int = 0
    gone: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    skipped: int = 0
    renamed: int = 0
    example: str | None = None


class _Passage(PassageEntry):
    """A passage whose id may be missing until its content is known."""

    id: FactId = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was when it was read."""

    size: int
    mtime_ns: int
    digest: str


@dataclass(slots=True)
class _Document:
    """The passages of one file as lines of passages.jsonl, by id."""

    lines: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    renamed: int = 0
    example: str | None = None


def import_path(source: Path, name: str, cartridges_dir: Path, progress: Progress | None = None) -> Imported:
    """Make or renew the cartridge `name` of the file or folder `source`.

    Raises CartridgeError, and then nothing has changed. A file of a folder that cannot be read
    is left out; a single one is refused.
    """
    files = _files(source, cartridges_dir)
    target = cartridges_dir / name
    _refuse_target(name, target)
    work = _Work(source, files, target, progress or (lambda done, total: None))
    imported = work.run()
    try:
        cartridges_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".import-", dir=cartridges_dir) as temporary:
            # One level down, where a library that is read meanwhile does not take it for a cartridge.
            folder = Path(temporary) / name
            folder.mkdir()
            work.write(folder)
            _publish(folder, target)
    except OSError as error:
        raise CartridgeError(f"{target}: cannot be written: {error.strerror or error}.") from error
    return imported


def remove_cartridge(name: str, cartridges_dir: Path) -> int:
    """Remove an imported cartridge. Returns how many passages went. Raises CartridgeError for any other."""
    folder = cartridges_dir / name
    if not NAME.fullmatch(name) or not (folder / PASSAGES).is_file():
        raise CartridgeError(f"There is no imported cartridge {name!r} in {cartridges_dir}.")
    if (folder / FACTS).exists():
        raise CartridgeError(f"{folder / FACTS} was written by hand; remove the folder yourself if you are sure.")
    passages = sum(1 for _ in (folder / PASSAGES).open("rb"))
    shutil.rmtree(folder)
    return passages


def _files(source: Path, cartridges_dir: Path) -> dict[str, Path]:
    """The files to read by their label, which is the path below `source`."""
    if source.is_dir():
        found = {_label(path.relative_to(source).as_posix()): path for path in _walk(source, cartridges_dir)}
        if not found:
            raise CartridgeError(f"{source}: there is no file to import in this folder; there are {', '.join(READERS)}.")
        return found
    if source.suffix.lower() not in READERS:
        raise CartridgeError(
            f"{source}: cannot import {source.suffix or 'a file without a suffix'}; there are {', '.join(READERS)}."
        )
    if not source.is_file():
        raise CartridgeError(f"{source}: there is no such file.")
    return {_label(source.name): source}


def _walk(root: Path, cartridges_dir: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if is_document_folder(Path(folder, name), cartridges_dir))
        for name in sorted(names):
            if is_document(path := Path(folder, name)) and path.is_file():
                yield path


def is_document_folder(folder: Path, cartridges_dir: Path) -> bool:
    """Whether a folder below an imported one is looked into: not what is hidden, built, or our own."""
    return not folder.name.startswith(".") and folder.name not in PASSED_OVER and folder.resolve() != cartridges_dir.resolve()


def is_document(path: Path) -> bool:
    return path.suffix.lower() in READERS and not path.name.startswith((".", "~$"))


def _label(path: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in path)[:1000]


def _refuse_target(name: str, target: Path) -> None:
    if not NAME.fullmatch(name):
        raise CartridgeError(f"{name!r} is no cartridge name; use up to 64 of a-z, 0-9, - and _, with a letter or digit first.")
    if (target / FACTS).exists() and not (target / PASSAGES).exists():
        raise CartridgeError(
            f"{target / FACTS}:1: this cartridge was written by hand and is not replaced; choose another name."
        )
    if target.exists() and not target.is_dir():
        raise CartridgeError(f"{target}: this is a file; choose another name.")


class _Work:
    """One import: what was there, what is read, and what is written of both."""

    def __init__(self, source: Path, files: dict[str, Path], target: Path, progress: Progress) -> None:
        self.source, self.files, self.target = source, files, target
        self.whole = source.is_dir()
        self.progress = progress
        self.documents: dict[str, _Document] = {}
        self.seen: dict[str, _Seen] = {}
        self.source_before, self.seen_before = _load_state(target)

    def run(self) -> Imported:
        before = self.seen_before
        held = _load_lines(self.target) if before else {}
        sizes = {label: path.stat().st_size if path.exists() else 0 for label, path in self.files.items()}
        done, total = 0, sum(sizes.values()) or 1
        read: list[str] = []
        left_out: list[str] = []
        taken: dict[str, str] = {}
        for label, path in self.files.items():
            try:
                seen = _look(path, before.get(label))
                if label in before and seen.digest == before[label].digest:
                    document = _Document(held.get(label, {}))
                else:
                    watched = _watched(path, seen.size, done, total, self.progress)
                    document = _read(watched, path, label, self.whole)
                    read.append(label)
                for made in document.lines:
                    if made in taken:
                        raise CartridgeError(f"{path}: the id {made!r} is taken by {taken[made]}.")
            except CartridgeError as error:
                if not self.whole:
                    raise
                left_out.append(str(error))
                read = [other for other in read if other != label]
            else:
                taken |= dict.fromkeys(document.lines, label)
                self.documents[label], self.seen[label] = document, seen
            done += sizes[label]
            self.progress(done, total)
        passages = len(taken)
        if not passages:
            raise CartridgeError(left_out[0] if left_out else f"{self.source}: there is nothing in it to import.")
        documents = self.documents.values()
        return Imported(
            folder=self.target,
            passages=passages,
            read=tuple(read),
            kept=len(self.documents) - len(read),
            gone=tuple(sorted(before.keys() - self.files.keys())),
            left_out=tuple(left_out),
            skipped=sum(document.skipped for document in documents),
            renamed=sum(document.renamed for document in documents),
            example=next((document.example for document in documents if document.example), None),
        )

    def write(self, folder: Path) -> None:
        with (folder / PASSAGES).open("w", encoding="utf-8", newline="\n") as file:
            for document in self.documents.values():
                file.writelines(line + "\n" for line in document.lines.values())
        state = {"from": str(self.source.resolve()), "files": {label: asdict(seen) for label, seen in self.seen.items()}}
        (folder / STATE).write_text(json.dumps(state, ensure_ascii=False, indent=1), encoding="utf-8")
        if self._manifest_is_ours():
            made = _manifest(self.target.name, self.source)
            (folder / MANIFEST).write_text(made, encoding="utf-8", newline="\n")

    def _manifest_is_ours(self) -> bool:
        """Whether it is missing or as the last import made it: nobody has chosen a faction or a licence."""
        path = self.target / MANIFEST
        if not path.exists():
            return True
        ours = self.source_before and _manifest(self.target.name, self.source_before)
        return path.read_text(encoding="utf-8", errors="replace") == ours


def _load_state(target: Path) -> tuple[Path | None, dict[str, _Seen]]:
    """What the last import read: from where, and its files; nothing when it left no readable state."""
    try:
        state = json.loads((target / STATE).read_text(encoding="utf-8"))
        return Path(state["from"]), {label: _Seen(**seen) for label, seen in state["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # everything is read anew, which is never wrong
        return None, {}


def _load_lines(target: Path) -> dict[str, dict[str, str]]:
    """The lines of passages.jsonl by document and id."""
    held: dict[str, dict[str, str]] = {}
    try:
        with (target / PASSAGES).open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                held.setdefault(entry.get("document") or entry["source"], {})[entry["id"]] = line.rstrip("\n")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CartridgeError(
            f"{target / PASSAGES}: was changed by something else ({error}); remove the cartridge and import it again."
        ) from error
    return held


def _look(path: Path, before: _Seen | None) -> _Seen:
    """The file as it is now; it is hashed only when its size or time differ from `before`."""
    try:
        stat = path.stat()
        if before and (before.size, before.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return before
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise CartridgeError(f"{path}: cannot be read: {error.strerror}.") from error
    return _Seen(stat.st_size, stat.st_mtime_ns, digest)


def _read(entries: Iterable[Raw], path: Path, label: str, whole: bool) -> _Document:
    """The passages of one file."""
    document = _Document()
    lines: dict[str, int] = {}
    excerpts = path.suffix.lower() not in TABLES
    for line, raw in entries:
        given = _given_id(raw.pop("id", None), path, line)
        if given:
            raw["id"] = _clean_id(given, path, line)
        # The row's own source is what is cited; the document is then told beside it.
        own = {"document": label} if raw.get("source") not in (None, "") else {"source": label}
        entry: PassageEntry = validated(_Passage, raw | own | {"excerpt": excerpts}, path, line, {})
        if not given:
            # In a folder the same words in two files are two passages, of which one may go.
            entry = entry.model_copy(update={"id": _made_id(entry, label if whole else "")})
        document.renamed += bool(given) and entry.id != given
        if entry.id in lines:
            if not given:
                document.skipped += 1
                continue
            raise CartridgeError(f"{path}:{line}: the id {entry.id!r} is taken by line {lines[entry.id]}.")
        lines[entry.id] = line
        document.example = document.example or _example(entry)
        document.lines[entry.id] = entry.model_dump_json(exclude_defaults=True)
    if not lines:
        raise CartridgeError(f"{path}:1: there is nothing in this file to import.")
    return document


def _publish(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    # File by file, so that the cartridge is never absent and its questions stay.
    for made in sorted(folder.iterdir()):
        made.replace(target / made.name)


def _manifest(name: str, source: Path) -> str:
    # A JSON string without control characters is a TOML string too.
    description = json.dumps(f"Imported from {_label(source.resolve().name)}", ensure_ascii=False)
    return f'name = "{name}"\nversion = "1.0.0"\nfaction = "general"\nlicence = "unknown"\ndescription = {description}\n'


def _watched(path: Path, size: int, done: int, total: int, progress: Progress) -> Iterator[Raw]:
    """The entries of a file; a large one with lines tells how far it is."""
    entries = READERS[path.suffix.lower()](path)
    lines = _count_lines(path) if size > PROGRESS_BYTES else 1
    reported = 0
    for line, raw in entries:
        at = min(size, line * size // lines)
        if at >= reported + PROGRESS_BYTES:
            progress(done + at, total)
            reported = at
        yield line, raw


def _count_lines(source: Path) -> int:
    try:
        with source.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")) or 1
    except OSError as error:
        raise CartridgeError(f"{source}: cannot be read: {error.strerror}.") from error


# Ids


def _given_id(value: object, source: Path, line: int) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CartridgeError(f"{source}:{line}: 'id' is neither a string nor a number; leave it out and one is made.")
    return str(value).strip() or None


def _clean_id(given: str, source: Path, line: int) -> str:
    cleaned = _slug(given)[:128]
    if not cleaned:
        raise CartridgeError(
            f"{source}:{line}: the id {given[:40]!r} has no letter or digit of A-Z and 0-9; leave it out and one is made."
        )
    return cleaned


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() if not text.isascii() else text
    return _NOT_ID.sub("-", plain).lstrip("._-").rstrip("-")


def _made_id(entry: PassageEntry, label: str) -> str:
    """The same for the same content, so that importing an edited file again keeps the ids of the rest."""
    title = _slug((entry.section or "").rpartition(" > ")[2]).lower()[:40].rstrip("-")
    content = json.dumps([entry.section, entry.text, entry.asks, *([label] if label else [])])
    return f"{title or 'text'}-{hashlib.blake2b(content.encode(), digest_size=8).hexdigest()}"


def _example(entry: PassageEntry) -> str | None:
    if entry.asks:
        return entry.asks[0]
    return f"What about {entry.section.rpartition(' > ')[2]}?" if entry.section else None
