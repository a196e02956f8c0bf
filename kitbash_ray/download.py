"""One large file over HTTP: resumed where it stopped, never glued together from two versions.

The bytes go to `<file>.partial`; `<file>.partial.tag` says which version of the file they are of. A download
goes on only when the version is still the same, which the hub states beforehand and any other server is asked
with If-Range. A broken connection is tried again. Not here: whether what came is right, and the rename (models.py).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kitbash_ray.errors import ModelError

if TYPE_CHECKING:
    import httpx

#: Is told what is being done, how many bytes of it are done and how many there are, None if nobody knows.
Report = Callable[[str, int, int | None], None]
#: Seconds to wait before each new attempt in a row that brought nothing; one that brought bytes begins again.
PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0)
TIMEOUT_S = 30.0
#: HTTP statuses that may be different a moment later.
PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Remote:
    """A file to download, with what its server said of it beforehand."""

    url: str
    size: int | None = None
    #: Names the version: the hub's is the SHA-256 of a large file, the git SHA-1 of a small one.
    etag: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a token

    @property
    def sha256(self) -> str | None:
        return self.etag if self.etag and re.fullmatch(r"[0-9a-f]{64}", self.etag) else None


class _Broken(Exception):
    """An attempt that did not come to its end, and may with the next one."""


def partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def drop(partial: Path) -> None:
    """Forget what was downloaded."""
    partial.unlink(missing_ok=True)
    _tag(partial).unlink(missing_ok=True)


def download(remote: Remote, partial: Path, report: Report) -> None:
    """Bring `partial` to its end. Raises ModelError with one sentence; what came so far stays."""
    import httpx

    name, brought = partial.name.removesuffix(".partial"), False
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S) as client, _disk_errors(partial):
        pauses = iter(PAUSES_S)
        while True:
            before = size_of(partial)
            try:
                return _attempt(client, remote, partial, report)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise ModelError(f"The address of {name} leads nowhere: {error}; check it.") from error
            except (httpx.TransportError, _Broken) as error:
                if size_of(partial) > before:
                    pauses, brought = iter(PAUSES_S), True
                pause = next(pauses, None)
                if isinstance(error, httpx.ConnectError) and not brought:
                    raise ModelError(
                        f"The server of {name} cannot be reached ({error}); check the address and the network."
                    ) from error
                if pause is None:
                    raise ModelError(
                        f"The download of {name} broke off ({str(error) or type(error).__name__}); "
                        "check the network and pull again: it goes on where it stopped."
                    ) from error
                time.sleep(pause)


def check_space(folder: Path, needed: int) -> None:
    """Raises ModelError when `needed` bytes do not fit where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{needed / 1e9:,.1f} GB are to come and {folder} has {free / 1e9:,.1f} GB free; "
            "make room, or set KITBASH_CACHE_DIR to a folder on a larger disk."
        )


def _attempt(client: httpx.Client, remote: Remote, partial: Path, report: Report) -> None:
    version = _tag(partial).read_text() if _tag(partial).exists() else ""
    have = size_of(partial) if version and remote.etag in (None, version) else 0
    if remote.size is not None and have >= remote.size:
        if have == remote.size:
            return
        have = 0
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if remote.etag is None:  # the hub's address holds the commit, so its content cannot change
            headers["If-Range"] = version
    with client.stream("GET", remote.url, headers=headers) as response:
        if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{have}":
            return
        _refuse(response, partial)
        if response.status_code != 206:  # the server does not resume, or the file is another one now
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            drop(partial)
            raise _Broken("the server sent another range than the one asked for")
        _receive(response, remote, partial, have, report)


def _refuse(response: httpx.Response, partial: Path) -> None:
    """Raise what a status other than 200 and 206 means."""
    status = response.status_code
    if status in (200, 206):
        return
    if status == 416:
        drop(partial)
    if status in PASSING or status == 416:
        raise _Broken(f"HTTP status {status}")
    url = response.request.url
    if status in (401, 403):
        raise ModelError(f"{url.host} refuses {url.path} (HTTP status {status}); for a gated repository set HF_TOKEN.")
    raise ModelError(f"{url.host} does not give {url.path} (HTTP status {status}); check the address.")


def _receive(response: httpx.Response, remote: Remote, partial: Path, have: int, report: Report) -> None:
    length = response.headers.get("Content-Length", "")
    total = remote.size if remote.size is not None else have + int(length) if length.isdecimal() else None
    check_space(partial.parent, (total or have) - have)
    what = partial.name.removesuffix(".partial")
    with partial.open("ab" if have else "wb") as file:
        _tag(partial).write_text(remote.etag or _validator(response))
        report(what, have, total)
        for chunk in response.iter_raw():
            file.write(chunk)
            have += len(chunk)
            report(what, have, total)
        file.flush()
        os.fsync(file.fileno())  # before the rename that says it is whole
    if total is not None and have < total:
        raise _Broken(f"only {have:,} of {total:,} bytes came")


def _validator(response: httpx.Response) -> str:
    """What If-Range takes: an ETag that is not weak, else a date."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag and not etag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _tag(partial: Path) -> Path:
    return partial.with_name(partial.name + ".tag")


@contextmanager
def _disk_errors(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError(
                f"The disk of {partial.parent} is full; make room and pull again: it goes on where it stopped."
            ) from error
        raise ModelError(f"{partial} cannot be written: {error.strerror or error}.") from error
