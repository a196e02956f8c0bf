"""The cluster's Redis: found, killed, stopped and started again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil

from kitbash_ray import Kitbash
from kitbash_ray.config import CLUSTER_MARK, child_environment
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.state import read_record, write_record

from .harness import UNKNOWN, Cluster, eventually, naming, stopped


def all_back(cluster: Cluster) -> None:
    """Have four living layers, each of them admitted, and a Redis again."""
    start_redis(cluster)
    eventually(lambda: all(layer["state"] == "ready" for layer in cluster.layers().values()), 30, "all layers are ready")
    with Kitbash(settings=cluster.settings) as client:
        eventually(lambda: client.ask("What is ATP?").recorded, 10, "answers are recorded again")
        eventually(lambda: not client.ask(UNKNOWN).degraded, 20, "no breaker is open")


def redis_process(cluster: Cluster) -> psutil.Process:
    """The Redis that has the cluster's socket, whoever started it."""
    found = [
        process for process in naming(str(RedisServer(cluster.settings.state_dir).socket)) if process.name() == "redis-server"
    ]
    assert len(found) == 1, found
    return found[0]


def kill_redis(cluster: Cluster) -> None:
    process = redis_process(cluster)
    process.kill()
    eventually(lambda: not naming(str(RedisServer(cluster.settings.state_dir).socket)), 5, "Redis is gone")


def start_redis(cluster: Cluster) -> None:
    """Start the cluster's Redis if it does not run, and write it down so that `down` ends it."""
    server = RedisServer(cluster.settings.state_dir)
    if not naming(str(server.socket)):
        server.start(child_environment(**{CLUSTER_MARK: cluster.found.id}))
    record = read_record(cluster.settings)
    assert record
    write_record(cluster.settings, replace(record, redis_pid=redis_process(cluster).pid))


@contextmanager
def without_redis(cluster: Cluster, how: str) -> Iterator[None]:
    """Redis stands still, or is dead and started again at the end."""
    if how == "stopped":
        with stopped(redis_process(cluster).pid):
            yield
        return
    kill_redis(cluster)
    try:
        yield
    finally:
        start_redis(cluster)
