"""Ray's processes on one device: started together, each one started again alone.

`ray start` leaves its processes to themselves, and they belong to whoever calls `adopt`. So the
death of one does not end the others, as it would with `ray start --block`: with the state of the
cluster in a Redis, the GCS may die and come back under living raylets. A raylet takes all that
runs on its device with it, so then everything is started anew. Not here: when to stop (keeper.py).
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from enum import Enum, auto
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import psutil

#: The processes that `ray start` leaves, by the program or script that each one runs.
PARTS = ("gcs_server", "raylet", "monitor.py", "log_monitor.py", "dashboard.py", "ray.util.client.server")
#: How a raylet ends that was asked to: `ray stop` sends SIGTERM.
ASKED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
#: How soon after the raylet `ray stop` ends the others.
STOP_S = 3.0
#: A process that does not live is not started more often than this.
AGAIN_S = 5.0
END_S = 5.0
PR_SET_CHILD_SUBREAPER = 36


class State(Enum):
    RUNS = auto()
    #: It did not come up; the log says why.
    REFUSED = auto()
    #: Nobody asked for its end.
    DIED = auto()
    STOPPED = auto()


def adopt() -> None:
    """Make this process the parent of all below it whose own parent ends, and so of what `ray start` leaves."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


#: The command `ray`, which begins when it is told to: by then it has imported Ray, which takes a second and more on a
#: busy device. When whoever would tell it is gone, it ends.
RAY = (sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.stdin.readline() and main()")


class RayNode:
    """What `command`, RAY with the arguments of a `ray start`, brings up. `log` gets what that command says."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        #: What waits for the word to start, and what has had it and is not done.
        self._spare: psutil.Popen | None = None
        self._starter: psutil.Popen | None = None
        self._parts: dict[str, psutil.Process] = {}
        self._commands: dict[str, list[str]] = {}
        #: When a part was started again, on the monotonic clock.
        self._begun: dict[str, float] = {}

    def prepare(self) -> None:
        """Do what can be done before it is known when to start, so that `start` takes less time."""
        if self._spare is None or _exit_code(self._spare) is not None:
            with self._log.open("ab") as output:
                self._spare = _spawn(self._command, output, stdin=subprocess.PIPE)

    def start(self) -> None:
        """Begin to start it; `look` says what becomes of it."""
        self.prepare()
        assert self._spare
        self._starter, self._spare = self._spare, None
        self._log.write_bytes(b"")
        with suppress(BrokenPipeError):  # it has ended, which `look` sees
            self._starter.stdin.write(b"start\n")
            self._starter.stdin.close()

    def look(self) -> State:
        """How it is; what died but for the raylet is started again."""
        if self._starter:
            code = _exit_code(self._starter)
            if code is None:
                return State.STOPPED if _being_stopped() else State.RUNS
            self._starter = None
            if code:
                return State.REFUSED
            self._find_parts()
        self._reap()
        raylet = self._parts.get("raylet")
        if raylet is None:  # it was gone before `ray start` was
            return State.DIED
        if (code := _exit_code(raylet)) is not None:
            return self._end_of_raylet(code)
        for name, process in self._parts.items():
            code = _exit_code(process)
            if code is not None and time.monotonic() - self._begun.get(name, -AGAIN_S) > AGAIN_S:
                print(f"{name} ended with {code}; starting it again", flush=True)
                self._begun[name] = time.monotonic()
                self._parts[name] = _spawn(self._commands[name], subprocess.DEVNULL)
        return State.RUNS

    def _end_of_raylet(self, code: int) -> State:
        """What it means that the raylet is gone.

        It ends as if asked to when one of its agents dies, but `ray stop` goes on to the log monitor.
        """
        if code not in ASKED:
            return State.DIED
        try:
            return State.STOPPED if self._parts["log_monitor.py"].wait(timeout=STOP_S) in ASKED else State.DIED
        except psutil.TimeoutExpired:
            return State.DIED

    def end(self, but: Collection[int]) -> None:
        """Kill everything below this process but for the processes `but` and what is prepared.

        That is what is left of a Ray that died, HAProxy among it.
        """
        end, spared = time.monotonic() + END_S, {*but, self._spare.pid if self._spare else 0}
        # Again and again: what was killed may have started something a moment before.
        while time.monotonic() < end:
            left = [process for process in psutil.Process().children(recursive=True) if process.pid not in spared]
            if not left:
                break
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=0.5)
        self._starter = None
        self._parts.clear()

    def _reap(self) -> None:
        """Let go of what ended below us and is none of ours."""
        ours = {process.pid for process in (*self._parts.values(), self._spare) if process}
        for process in psutil.Process().children():
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                if process.pid not in ours and process.status() == psutil.STATUS_ZOMBIE:
                    process.wait(timeout=0)

    def _find_parts(self) -> None:
        for process in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                command = process.cmdline()
                for name in {Path(word).name for word in command[:4]} & {*PARTS}:
                    self._parts[name], self._commands[name] = process, command


def _spawn(command: list[str], output: int | BinaryIO, stdin: int = subprocess.DEVNULL) -> psutil.Popen:
    return psutil.Popen(command, cwd="/", stdin=stdin, stdout=output, stderr=subprocess.STDOUT)


def _being_stopped() -> bool:
    """Whether `ray stop` runs here; while Ray starts nothing else shows it."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(Path(word).name in ("ray", "ray.scripts.scripts") and after == "stop" for word, after in pairwise(words)):
            return True
    return False


def _exit_code(process: psutil.Process) -> int | None:
    """What a child of ours ended with, None while it runs."""
    try:
        return int(process.wait(timeout=0))
    except psutil.TimeoutExpired:
        return None
