"""One real cluster for all tests of this folder: started once, and looked for leftovers at the end."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from actors import cluster as local
from actors.haproxy import free_port
from kitbash_ray import Kitbash
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.tiny_model import write_tiny_gguf

from .harness import Cluster, copy_cartridges, eventually, listeners, listening, naming, processes

HERE = Path(__file__).parent
#: Questions worked on at once: few, so that overload is cheap to make.
MAX_IN_FLIGHT = 8
#: Layer 4's time; tests that stop its process wait as long as this.
KOBOLD_TIMEOUT_MS = 8000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster(_clean_session: None) -> Iterator[Cluster]:
    """Redis, Ray, the four layers with tiny models, and the front door."""
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))  # short: a socket's path has 107 bytes
    settings = _settings(folder)
    with pytest.MonkeyPatch.context() as patch:  # Ray asks for its token: the harder case, and nobody else gets in
        (folder / "ray_token").write_text(secrets.token_hex(32))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "ray_token"))
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # what is counted is shown sooner
        found = local.up(settings, lambda what: print(what, flush=True))
    up = Cluster(settings, found, settings.cartridges_dir)
    try:
        yield up
    finally:
        _end_and_look(up)
        shutil.rmtree(folder, ignore_errors=True)


def _settings(folder: Path) -> Settings:
    return load_settings(
        kitbash_state_dir=folder / "state",
        kitbash_port=free_port(),
        kitbash_dashboard_port=free_port(),
        cartridges_dir=copy_cartridges(folder / "cartridges"),
        bitnet_model=write_tiny_gguf(folder / "bitnet.gguf", seed=1),
        kobold_model=write_tiny_gguf(folder / "kobold.gguf", seed=2),
        bitnet_max_tokens=8,
        kobold_max_tokens=16,
        kobold_timeout=KOBOLD_TIMEOUT_MS,
        kitbash_max_in_flight=MAX_IN_FLIGHT,
        diagnostic_level="debug",
    )


def _end_and_look(up: Cluster) -> None:
    """End the cluster; no process of it and no port may be left."""
    roots = [pid for pid in (up.found.ray_pid, up.found.redis_pid) if pid]
    before = processes(up.found.id, *roots)
    ports = listening(before)
    assert up.settings.kitbash_port in ports, "the processes of the cluster were not found"
    assert local.down(up.settings, lambda what: print(what, flush=True))
    left = [process for process in before if process.is_running()] + processes(up.found.id, *roots)
    left += naming(str(up.settings.state_dir))
    assert not left, f"left behind: {left}"
    eventually(lambda: not listeners(ports), 5, f"nobody listens on {sorted(ports)} any more: {listeners(ports)}")
    assert not Path(f"/tmp/kitbash-{up.found.id}").exists()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Kitbash]:
    with Kitbash(settings=cluster.settings) as connected:
        yield connected


@pytest.fixture
def http(cluster: Cluster) -> Iterator[httpx.Client]:
    """Plain HTTP with the token."""
    with cluster.http() as connected:
        yield connected


@pytest.fixture
def stranger(cluster: Cluster) -> Iterator[httpx.Client]:
    """Plain HTTP without a token."""
    with cluster.http(headers=None) as connected:
        yield connected
