"""A cluster that a benchmark starts for itself: random ports, its own state folder, ended afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actors import cluster
from actors.haproxy import free_port
from kitbash_ray.config import load_settings
from kitbash_ray.token import find_token


@dataclass(frozen=True)
class OwnCluster:
    """`folder` is gone with the cluster; `address` is Ray's."""

    url: str
    token: str
    address: str
    folder: Path


@contextmanager
def own_cluster(folder: Path | None = None, **settings: str) -> Iterator[OwnCluster]:
    """Start it with `settings`, named as in the environment. `folder` may hold what they name."""
    folder = folder or Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))  # short: a socket's path has 107 bytes
    os.environ |= {
        "KITBASH_STATE_DIR": str(folder),
        "KITBASH_PORT": str(free_port()),
        "KITBASH_DASHBOARD_PORT": str(free_port()),
        "PYTHONPATH": os.getcwd(),
        **settings,
    }
    own = load_settings()
    try:
        found = cluster.up(own, print)
        yield OwnCluster(found.url, find_token(own), found.address, folder)
    finally:
        cluster.down(own, print)
        shutil.rmtree(folder, ignore_errors=True)
