"""What may be wrong with a machine or a cluster, each finding with its remedy.

`look` gathers facts on one node, by itself or inside a Ray task; `judge` turns the facts of all
nodes into findings and touches nothing. Not here: reaching the other nodes (actors/checkup.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from kitbash_ray import __version__
from kitbash_ray.config import SECRETS, Settings, ray_auth, ray_token_file
from kitbash_ray.devices import Device, resolved
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.state import Running

if TYPE_CHECKING:
    from kitbash_ray.redis_client import Trouble

#: Indexes and logs need some room; clocks that differ by more make times of events and keys wrong.
FREE_BYTES, SKEW_S = 1 << 30, 1.0
CONNECT_S = 3.0
PYTHONS = ((3, 10), (3, 13))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at on a node. A finding that is not ok has a remedy."""

    check: str
    node: str
    ok: bool
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node says of itself. `skew_s` is how far its clock is ahead of whoever asked."""

    node: str
    address: str
    python: str
    ray: str
    kitbash: str
    free_bytes: int
    folder: str
    redis_problem: str
    at: float
    skew_s: float = 0.0
    redis_remedy: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What Ray knows of its living nodes: facts of those that answered, why others did not, all resources."""

    facts: tuple[Facts, ...]
    silent: tuple[tuple[str, str], ...]
    addresses: tuple[str, ...]
    resources: tuple[str, ...]


def look(settings: Settings, address: str = "") -> Facts:
    """The facts of the node that this runs on; it connects to Redis, and to nothing else."""
    trouble = redis_trouble(settings)
    folder = settings.cache_dir
    while not folder.exists():
        folder = folder.parent
    return Facts(
        node=platform.node(),
        address=address,
        python=platform.python_version(),
        ray=version("ray"),
        kitbash=__version__,
        free_bytes=shutil.disk_usage(folder).free,
        folder=str(folder),
        redis_problem=trouble.what if trouble else "",
        at=time.time(),
        redis_remedy=trouble.advice if trouble else "",
    )


def judge(here: Facts, seen: Seen | None, running: Running | None) -> Iterator[Finding]:
    """The findings about each node, compared with this one. Redis counts only where a cluster runs."""
    for facts in seen.facts if seen else (here,):
        yield from _versions(facts, here)
        free = f"{facts.free_bytes / (1 << 30):.1f} GiB free in {facts.folder}"
        yield Finding("disk", facts.node, facts.free_bytes >= FREE_BYTES, free, "Make room, or set KITBASH_CACHE_DIR.")
        ahead = f"{facts.skew_s:+.2f} s beside {here.node}"
        remedy = f"Let both devices follow a time server: `timedatectl set-ntp true` on {facts.node}."
        yield Finding("clock", facts.node, abs(facts.skew_s) <= SKEW_S, ahead, remedy)
        if running:
            what = facts.redis_problem or "answers and takes writes"
            yield Finding("redis", facts.node, not facts.redis_problem, what, facts.redis_remedy)
    for node, why in seen.silent if seen else ():
        yield Finding("ray", node, False, why, "See /tmp/ray/session_latest/logs on that device.")


def _versions(facts: Facts, here: Facts) -> Iterator[Finding]:
    number = tuple(map(int, facts.python.split(".")[:2]))
    same = facts.python.split(".")[:2] == here.python.split(".")[:2]
    remedy = (
        f"Use one Python on all devices: remove ~/kitbash/.venv on {facts.node}, set PYTHON in cluster.yaml's `make setup`."
    )
    yield Finding("python", facts.node, PYTHONS[0] <= number <= PYTHONS[1] and same, facts.python, remedy)
    remedy = f"Run `make setup` in the project's folder on {facts.node}."
    yield Finding("ray version", facts.node, facts.ray == here.ray, facts.ray, remedy)
    yield Finding("kitbash version", facts.node, facts.kitbash == here.kitbash, facts.kitbash, remedy)


def judge_devices(devices: Sequence[Device], seen: Seen) -> Iterator[Finding]:
    """Whether each device of cluster.yaml has joined."""
    for device in devices:
        there = resolved(device.address) in seen.addresses
        remedy = f"Run `ray monitor cluster.yaml` to see what the head tries, and `kitbash doctor` on {device.address} for what it sees."
        yield Finding("device", device.address, there, "has joined" if there else "is not in the cluster", remedy)


def judge_resources(wanted: dict[str, list[str]], seen: Seen, node: str) -> Iterator[Finding]:
    """Whether some node has each resource; `wanted` maps it to the layers that it pins."""
    for resource, layers in wanted.items():
        there = resource in seen.resources
        what = f"{resource} ({', '.join(layers)}) {'is there' if there else 'is on no node'}"
        remedy = "Start the device that has it, or correct `devices` in cluster.yaml and run `ray up cluster.yaml`."
        yield Finding("resource", node, there, what, remedy)


def wanted_resources(settings: Settings) -> dict[str, list[str]]:
    """The resources that pin layers, each with those layers."""
    wanted: dict[str, list[str]] = {settings.grain_resource: ["grain"]}
    for name in ("bitnet", "cartridge", "kobold"):
        if getattr(settings, f"{name}_auto_spawn"):
            for resource in dict.fromkeys(settings.resources[name]):
                wanted.setdefault(resource, []).append(name)
    return wanted


def token_finding(node: str, needed: bool) -> Finding:
    """Ray's token: asked for, in a file that nobody else can read. `needed` where other devices join."""
    path = ray_token_file()
    if ray_auth() != "token":
        what = "Ray asks for no token: whoever reaches its ports can run programs here"
        return Finding("ray token", node, not needed, what, "Run `ray get-auth-token --generate`, and start the cluster again.")
    if path.exists() and path.stat().st_mode & 0o077 and SECRETS not in path.parents:
        return Finding("ray token", node, False, f"others can read {path}", f"Run `chmod 600 {path}`.")
    return Finding("ray token", node, True, f"in {path}")


def port_finding(check: str, node: str, address: str, port: int, remedy: str) -> Finding:
    """Whether something takes connections at a port."""
    try:
        with socket.create_connection((address, port), timeout=CONNECT_S):
            return Finding(check, node, True, f"{address}:{port} takes connections")
    except OSError as error:
        return Finding(check, node, False, f"{address}:{port}: {os.strerror(error.errno) if error.errno else error}", remedy)


def ray_redis_finding(node: str, server: RedisServer) -> Finding:
    """Whether the Redis that keeps Ray's state answers; without it Ray outlives nothing that happens to its head."""
    remedy = f"The keeper starts it when its process ends: see {server.folder / 'redis/redis.log'}, and keeper.log in the folder above."
    ok = server.running()
    return Finding("redis of Ray", node, ok, f"{'answers' if ok else 'does not answer'} at {server.socket}", remedy)


def redis_trouble(settings: Settings) -> Trouble | None:
    """Why Redis cannot be used from here; it is asked for an answer and for a write."""
    from kitbash_ray.blackboard import probe  # here: the command line needs this module where there is no Redis
    from kitbash_ray.redis_client import FAULTS, connect_sync, trouble_of

    try:
        with connect_sync(settings.resolved_redis_url, socket_connect_timeout=CONNECT_S, socket_timeout=CONNECT_S) as client:
            probe(client)
    except FAULTS as error:
        return trouble_of(error)
    return None
