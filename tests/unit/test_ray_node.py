"""What a keeper makes of the ends of Ray's processes, shown with processes that only sleep. With Ray's own: tests/hosts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.harness import eventually

PARTS = ("gcs_server", "log_monitor.py", "raylet")
#: Leaves processes that are named like Ray's, as `ray start` does.
STARTER = f"""
import subprocess, sys
for name in {PARTS}:
    subprocess.Popen([sys.executable, sys.argv[1] + "/" + name], stdin=subprocess.DEVNULL)
"""
#: In a process of its own, because it adopts.
KEEPER = """
import sys, time
from pathlib import Path
import psutil
from actors.ray_node import RayNode, State, adopt
adopt()
node = RayNode(sys.argv[2:], Path(sys.argv[1]))
node.start()
found = False
while (state := node.look()) is State.RUNS:
    if not found and len(psutil.Process().children()) == 3:
        found = True
        print("looked after", flush=True)
    time.sleep(0.05)
node.end(but=())
print(state.name, flush=True)
"""

#: Waits as `ray start` does, then leaves its number in a file.
WAITING = "import os, sys; sys.stdin.readline() and open(sys.argv[1], 'w').write(str(os.getpid()))"
PREPARED = """
import sys, time
from pathlib import Path
import psutil
from actors.ray_node import RayNode, State, adopt
adopt()
node = RayNode(sys.argv[2:], Path(sys.argv[1]))
node.prepare()
node.end(but=())
print(psutil.Process().children()[0].pid, flush=True)
sys.stdin.readline()
node.start()
while (state := node.look()) is State.RUNS:
    time.sleep(0.05)
print(state.name)
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a keeper of what a program leaves; nothing of it stays."""
    for name in PARTS:
        (tmp_path / name).write_text("import signal; signal.pause()")
    keepers = []

    def begin(starter: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KEEPER, str(tmp_path / "log"), sys.executable, "-c", starter, str(tmp_path)]
        keepers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]))
        return keepers[-1]

    yield begin
    for keeper in keepers:
        left = (
            [psutil.Process(keeper.pid), *psutil.Process(keeper.pid).children(recursive=True)] if keeper.poll() is None else []
        )
        for process in left:
            process.kill()
        keeper.wait(10)
        assert keeper.stdout
        keeper.stdout.close()


def named(process: psutil.Process, name: str) -> bool:
    """Whether it runs the file of this name; one that is just ending has no command line, or is gone already."""
    try:
        return any(Path(argument).name == name for argument in process.cmdline()[-1:])
    except psutil.NoSuchProcess:
        return False


def part(keeper: subprocess.Popen[str], name: str) -> psutil.Process | None:
    return next((child for child in psutil.Process(keeper.pid).children() if named(child, name)), None)


def parts(keeper: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """All three, once the keeper says that it has found them."""
    assert keeper.stdout
    assert keeper.stdout.readline() == "looked after\n"
    found = {name: part(keeper, name) for name in PARTS}
    return {name: process for name, process in found.items() if process}


def said(keeper: subprocess.Popen[str]) -> list[str]:
    return keeper.communicate(timeout=20)[0].split("\n")


def test_what_dies_beside_the_raylet_is_started_again_alone(start: Start) -> None:
    keeper = start(STARTER)
    before = parts(keeper)
    before["gcs_server"].kill()
    eventually(lambda: (again := part(keeper, "gcs_server")) and again != before["gcs_server"], 20, "it runs again")
    assert part(keeper, "raylet") == before["raylet"]
    assert part(keeper, "log_monitor.py") == before["log_monitor.py"]


def test_a_raylet_that_dies_takes_the_others_with_it(start: Start) -> None:
    keeper = start(STARTER)
    before = parts(keeper)
    before["raylet"].kill()
    assert "DIED" in said(keeper)
    assert not [process for process in before.values() if process.is_running()]


def test_a_raylet_that_ends_alone_as_if_asked_has_died(start: Start) -> None:
    keeper = start(STARTER)
    parts(keeper)["raylet"].send_signal(signal.SIGTERM)
    assert "DIED" in said(keeper)


def test_when_the_others_end_after_the_raylet_somebody_stopped_ray(start: Start) -> None:
    keeper = start(STARTER)
    before = parts(keeper)
    before["raylet"].terminate()
    before["log_monitor.py"].terminate()
    assert "STOPPED" in said(keeper)


def test_ray_stop_is_noticed_while_ray_starts(start: Start, tmp_path: Path) -> None:
    keeper = start("import signal; signal.pause()")
    (tmp_path / "ray").write_text("import signal; signal.pause()")
    stop = subprocess.Popen([sys.executable, str(tmp_path / "ray"), "stop"])
    try:
        assert "STOPPED" in said(keeper)
    finally:
        stop.kill()
        stop.wait(10)


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A keeper that has prepared a start, ended all else, and starts when it reads a line."""
    command = [sys.executable, "-c", PREPARED, str(tmp_path / "log"), sys.executable, "-c", WAITING, str(tmp_path / "started")]
    folder = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as keeper:
        yield keeper
        keeper.kill()


def test_what_was_prepared_is_not_ended_with_the_rest_and_starts(prepared: subprocess.Popen[str], tmp_path: Path) -> None:
    said, _ = prepared.communicate("start\n", timeout=20)
    number, state = said.split()
    assert (tmp_path / "started").read_text() == number
    assert state == "DIED"


def test_what_was_prepared_starts_nothing_when_its_keeper_is_killed(prepared: subprocess.Popen[str], tmp_path: Path) -> None:
    assert prepared.stdout
    waiting = psutil.Process(int(prepared.stdout.readline()))
    prepared.kill()
    waiting.wait(10)
    assert not (tmp_path / "started").exists()


def test_a_ray_that_does_not_come_up_is_said(start: Start) -> None:
    assert "REFUSED" in said(start("raise SystemExit(1)"))
