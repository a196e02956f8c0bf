"""Staying with one device's part, as a container does, with a process that stands for Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from kitbash_ray.config import child_environment, load_settings
from kitbash_ray.errors import ClusterError
from kitbash_ray.state import read_record, record_file

STAYS = """
import subprocess
import sys
import time
from pathlib import Path
from actors import node
from kitbash_ray.config import load_settings
from kitbash_ray.devices import Device, Devices
from kitbash_ray.errors import KitbashError
from kitbash_ray.state import Running, write_record

settings = load_settings(kitbash_state_dir=sys.argv[1], redis_url="redis://127.0.0.1:1")
given = {"kitbash_state_dir": sys.argv[1], "redis_url": settings.redis_url}

def start():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    found = Running("test", "", "", "", process.pid, None, "", "", time.time(), role="worker")
    write_record(settings, found)
    print(process.pid, flush=True)
    return found

try:
    node.stay(Devices(Path("cluster.yaml"), (Device("localhost", (), head=True),), given), start, lambda what: None)
except KitbashError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
END_S = 20


def stays(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAYS, str(folder)]
    return subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def staying(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that stays, and prints the number of what it stays for."""
    with stays(tmp_path) as process:
        yield process
        process.kill()
    if record := read_record(load_settings(kitbash_state_dir=tmp_path)):  # only where a test has failed
        with suppress(psutil.Error):
            psutil.Process(record.ray_pid).kill()


def kept(staying: subprocess.Popen[str]) -> psutil.Process:
    assert staying.stdout
    return psutil.Process(int(staying.stdout.readline()))


def test_sigterm_ends_what_was_started_and_leaves_no_record(staying: subprocess.Popen[str], tmp_path: Path) -> None:
    process = kept(staying)
    staying.terminate()
    assert staying.wait(END_S) == 0, staying.communicate()
    assert not process.is_running()
    assert not record_file(load_settings(kitbash_state_dir=tmp_path)).exists()


def test_what_ends_by_itself_is_an_error_that_names_the_log(staying: subprocess.Popen[str], tmp_path: Path) -> None:
    kept(staying).kill()
    _, why = staying.communicate(timeout=END_S)
    assert staying.returncode == 1
    assert why.startswith(ClusterError.__name__)
    assert str(tmp_path / "ray.log") in why


def test_a_record_of_a_killed_run_is_not_taken_for_a_running_one(staying: subprocess.Popen[str], tmp_path: Path) -> None:
    first = kept(staying)
    staying.kill()
    staying.wait(END_S)
    with stays(tmp_path) as again:
        second = kept(again)
        assert second.pid != first.pid
        assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
        record = read_record(load_settings(kitbash_state_dir=tmp_path))
        assert record
        assert abs(record.started_at - time.time()) < END_S
        again.terminate()
