"""Two replicas of a layer: both work, and one that dies costs no answer."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import cluster as local
from actors.haproxy import free_port
from kitbash_ray.config import load_settings
from kitbash_ray.tiny_model import write_tiny_gguf

from .harness import UNKNOWN, Cluster, asking, copy_cartridges, eventually


@pytest.fixture(scope="module")
def pair(_clean_session: None) -> Iterator[Cluster]:
    """A cluster of its own with two replicas of layer 2."""
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))
    settings = load_settings(
        kitbash_state_dir=folder / "state",
        kitbash_port=free_port(),
        kitbash_dashboard_port=free_port(),
        cartridges_dir=copy_cartridges(folder / "cartridges"),
        kobold_model=write_tiny_gguf(folder / "kobold.gguf", seed=2),
        kobold_max_tokens=4,
        cartridge_resource="device_b, device_c",
        bitnet_auto_spawn=False,
        cartridge_timeout=20_000,  # the tests ask at once while a replica loads, on two cores
    )
    found = local.up(settings, lambda what: print(what, flush=True))
    try:
        yield Cluster(settings, found, settings.cartridges_dir)
    finally:
        assert local.down(settings, lambda what: print(what, flush=True))
        shutil.rmtree(folder, ignore_errors=True)


def replicas(cluster: Cluster) -> dict[str, int]:
    """The living replicas of layer 2: pids by name."""
    return {beat["name"]: int(beat["pid"]) for beat in cluster.layers()["cartridge"].get("replicas", ())}


def test_each_resource_that_is_named_has_a_replica_and_one_that_dies_costs_no_answer(pair: Cluster) -> None:
    before = eventually(lambda: len(replicas(pair)) == 2 and replicas(pair), 30, "both replicas live")
    assert set(before) == {"cartridge", "cartridge-2"}
    with asking(pair, UNKNOWN) as asked:
        eventually(lambda: len(asked.answers) > 2, 20, "questions are answered")
        for name in before:
            os.kill(replicas(pair)[name], signal.SIGKILL)
            gone = len(asked.answers)
            eventually(lambda gone=gone: len(asked.answers) > gone + 2, 30, "questions are answered by the other")
            eventually(lambda name=name: replicas(pair).get(name, before[name]) != before[name], 20, f"{name} is back")
            back = len(asked.answers)  # the front door asks for its health once a second
            eventually(lambda back=back: len(asked.answers) > back + 20, 30, "the front door knows that it is back")
    assert asked.errors == []
    steps = [step for _, answer in asked.answers for step in answer.path if step.layer == "cartridge"]
    assert {step.outcome for step in steps} <= {"answered", "abstained"}, [
        s for s in steps if s.outcome not in ("answered", "abstained")
    ]
    assert {answer.degraded for _, answer in asked.answers} == {()}
