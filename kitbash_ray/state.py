"""What `kitbash up` and `kitbash node` write down about the cluster they started, for the commands that come later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from kitbash_ray.config import Settings

#: The record is written at most this many seconds after the processes it names were started.
RECORDED_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Running:
    """A started cluster. `id` marks its processes, `started_at` is Unix seconds."""

    id: str
    url: str
    dashboard: str
    address: str
    ray_pid: int
    redis_pid: int | None
    redis: str
    cartridges: str
    started_at: float
    #: What this machine is in it: all of it, or one of several devices.
    role: str = "alone"
    #: Where Ray shows the metrics of this machine.
    metrics: str = ""
    #: The Redis that keeps Ray's state, on the head of several devices.
    ray_redis_pid: int | None = None


def record_file(settings: Settings) -> Path:
    return settings.state_dir / "cluster.json"


def write_record(settings: Settings, found: Running) -> None:
    partial = record_file(settings).with_suffix(".partial")
    partial.write_text(json.dumps(asdict(found), indent=1))
    partial.replace(record_file(settings))


def read_record(settings: Settings) -> Running | None:
    """The record, whether or not the cluster still lives."""
    try:
        return Running(**json.loads(record_file(settings).read_text()))
    except (OSError, ValueError, TypeError):  # none, or one that was cut short: as good as none
        return None


def running(settings: Settings) -> Running | None:
    """The recorded cluster if its head process still lives, else None."""
    found = read_record(settings)
    return found if found and alive(found.ray_pid, found.started_at) else None


def alive(pid: int, started_at: float) -> bool:
    """Whether `pid` is still the process that was started then, and not a later one with its number."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started_at) < RECORDED_WITHIN_S
    except psutil.Error:
        return False


def front_door_url(settings: Settings) -> str:
    """Where the front door is: KITBASH_URL, else what `kitbash up` wrote down, else the default."""
    found = None if settings.kitbash_url else read_record(settings)
    return found.url if found else settings.url
