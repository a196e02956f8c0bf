"""Events on disk that wait for Redis, in the order in which they happened.

Each process has a file of its own in one folder and locks it while it lives. So nobody waits for
another's file, and a file that can be locked was left by a process that died: whoever finds it
writes it to Redis. Not here: when that is (recorder.py).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from msgspec import MsgspecError

from kitbash_ray.types import Event, decode, encode

log = logging.getLogger(__name__)

#: A file keeps what fits here; older events are more useful than none, so new ones are dropped.
SPOOL_BYTES = 256 << 20
SUFFIX = ".jsonl"


class Spool:
    """The file of one process. It is there only while it holds something; every method may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder
        self._file = -1
        #: Bytes in the file, those of them that are done, and those that `first` has returned.
        self._size = self._done = self._returned = 0

    @property
    def waiting(self) -> int:
        """Bytes of events that are not done."""
        return self._size - self._done

    def append(self, events: Sequence[Event]) -> None:
        """Put events behind the others: all of them, or none if they do not fit."""
        lines = b"".join(encode(event) + b"\n" for event in events)
        if self._size + len(lines) > SPOOL_BYTES:
            raise OSError(errno.EFBIG, "the file is full", str(self.folder))
        if self._file < 0:
            self._create()
        written = os.write(self._file, lines)
        if written < len(lines):  # the disk is full: no half of a line may stay before the next
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._size += written

    def first(self, count: int) -> list[Event] | None:
        """The oldest events, `count` at most; None when there is nothing more, and then the file is gone."""
        if self._done == self._size:
            self.close()
            return None
        with self._path.open("rb") as file:
            file.seek(self._done)
            lines = list(islice(file, count))
        self._returned = self._done + sum(map(len, lines))
        return [event for line in lines if (event := _read(line))]

    def drop(self) -> None:
        """What `first` returned is not needed any more."""
        self._done = self._returned

    def close(self) -> None:
        """Let go of the file; if events are left in it, another process may find it now."""
        if self._file < 0:
            return
        if self._done == self._size:
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file, self._size, self._done = -1, 0, 0

    def left_behind(self) -> Iterator[Spool]:
        """Files of processes that died, the oldest first. Each is this process's own until it is closed."""
        for path in self.others():
            if found := self._adopted(path):
                yield found

    def others(self) -> list[Path]:
        """The files of other processes, dead or alive, the oldest first."""
        return sorted(path for path in self.folder.glob(f"*{SUFFIX}") if path != self._path)

    def _create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = self.folder / f"{time.time_ns()}-{os.getpid()}{SUFFIX}"
        hidden = self._path.with_suffix(".new")  # it gets its name once it is locked
        self._file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(self._path)

    def _adopted(self, path: Path) -> Spool | None:
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:  # its process has just written it to Redis
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        found = Spool(self.folder)
        found._path, found._file, found._size = path, file, os.fstat(file).st_size
        return found


def _read(line: bytes) -> Event | None:
    """An event; None for a line that was cut short when its process died."""
    try:
        return decode(Event, line)
    except MsgspecError:
        log.warning("a damaged line of the spool is left out")
        return None
