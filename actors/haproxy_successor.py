"""What takes HAProxy's place when it is killed: `python haproxy_successor.py PID SERVE SPARE COMMAND OPTION...`.

Serve needs some two seconds to notice that its HAProxy is gone and to start another one, which knows
no route at first; meanwhile nobody listens at the door. So beside every HAProxy one of these waits,
and becomes the next, with the same configuration, a few hundredths of a second after its death.

COMMAND with its OPTIONs started the HAProxy of that PID, and this beside it. SERVE is the pid of the
process of Serve that looks after HAProxy. It finds a living one at the admin socket and is content,
but can reload only the one that it has started itself; for any other, a spare (SPARE is not empty),
this process does so when Serve has written a new configuration. A spare ends when Serve does, or has
started one of its own again. Only the standard library, so that it starts at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

#: How often it is looked whether HAProxy has come up, and whether a spare is still wanted, in seconds.
COMES_UP_EVERY_S, LOOK_EVERY_S = 0.05, 0.2
ANSWER_S = 1.0


def succeed(haproxy: int, serve: int, spare: bool, start: list[str]) -> None:
    """Return when HAProxy has ended and needs no successor; otherwise this process becomes it.

    `start` is the command and the options that started it.
    """
    try:
        ends, serves = os.pidfd_open(haproxy), os.pidfd_open(serve)
    except ProcessLookupError:  # gone before this began; Serve sees that
        return
    again = start[: start.index("-sf")] if "-sf" in start else start  # whom that one has replaced is gone
    config = Path(again[again.index("-f") + 1])
    written, admin = _written(config), _admin_socket(config)
    while _listens(admin) != haproxy:
        if _ended(ends, COMES_UP_EVERY_S):  # it could not start, and its successor could not either
            return
    while not _ended(ends, LOOK_EVERY_S if spare else None):
        if _ended(serves, 0) or _listens(admin) not in (haproxy, None):
            os.kill(haproxy, signal.SIGUSR1)  # no new connections; it ends with the last one
            return
        if _written(config) != written:
            os.execv(again[0], [*again, "-sf", str(haproxy), "-x", admin])
    if not _ended(serves, 0) and _listens(admin) is None:
        os.execv(again[0], again)


def _admin_socket(config: Path) -> str:
    """The path of the socket at which HAProxy answers questions about itself."""
    words = (line.split() for line in config.read_text().splitlines())
    return next(line[2] for line in words if line[:2] == ["stats", "socket"])


def _ended(process: int, wait_s: float | None) -> bool:
    return bool(select.select([process], [], [], wait_s)[0])


def _written(config: Path) -> int | None:
    with suppress(OSError):
        return config.stat().st_mtime_ns
    return None


def _listens(admin: str) -> int | None:
    """The pid of the HAProxy that answers at the socket, None if none does."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_S)
        client.connect(admin)
        client.sendall(b"show info\n")
        told = b""
        while piece := client.recv(65536):
            told += piece
        for line in told.splitlines():
            if line.startswith(b"Pid:"):
                return int(line.partition(b":")[2])
    return None


if __name__ == "__main__":
    pid, serve_pid, is_spare, *command = sys.argv[1:]
    succeed(int(pid), int(serve_pid), bool(is_spare), command)
