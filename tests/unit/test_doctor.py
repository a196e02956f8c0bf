"""What the doctor makes of facts. That it gathers the right ones of a real cluster: tests/hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kitbash_ray.config import load_settings
from kitbash_ray.devices import Device
from kitbash_ray.doctor import (
    Facts,
    Seen,
    judge,
    judge_devices,
    judge_resources,
    look,
    token_finding,
    wanted_resources,
)
from kitbash_ray.state import Running

HERE = Facts("a", "10.0.0.1", "3.11.7", "2.60.0", "0.1.0", 50 << 30, "/cache", "", at=0.0)
THERE = replace(HERE, node="b", address="10.0.0.2")
RUNNING = Running("id", "http://127.0.0.1:9", "", "127.0.0.1:9", 1, None, "", "", 0.0)


def wrong(facts: Facts) -> list[tuple[str, str]]:
    seen = Seen((HERE, facts), (), ("10.0.0.1", "10.0.0.2"), ())
    found = [finding for finding in judge(HERE, seen, RUNNING) if not finding.ok]
    assert all(finding.remedy for finding in found)
    return [(finding.check, finding.node) for finding in found]


def test_nothing_is_wrong_with_two_nodes_that_are_alike() -> None:
    assert wrong(THERE) == []


@pytest.mark.parametrize(
    ("facts", "check"),
    [
        (replace(THERE, python="3.12.1"), "python"),
        (replace(THERE, ray="2.59.0"), "ray version"),
        (replace(THERE, kitbash="0.0.9"), "kitbash version"),
        (replace(THERE, skew_s=-3.0), "clock"),
        (replace(THERE, free_bytes=1 << 20), "disk"),
        (replace(THERE, redis_problem="Redis is full", redis_remedy="Raise its `maxmemory`."), "redis"),
    ],
)
def test_a_fault_of_another_node_is_found_there(facts: Facts, check: str) -> None:
    assert wrong(facts) == [(check, "b")]


def test_the_patch_level_of_python_may_differ() -> None:
    assert wrong(replace(THERE, python="3.11.9")) == []


def test_a_python_that_is_too_new_is_found_here() -> None:
    found = {finding.check: finding.ok for finding in judge(replace(HERE, python="3.14.0"), None, None)}
    assert found["python"] is False
    assert "redis" not in found  # without a cluster nothing is wrong with a Redis that does not run


def test_a_node_that_does_not_answer_is_wrong() -> None:
    seen = Seen((HERE,), (("c", "Get timed out"),), (), ())
    assert [finding.node for finding in judge(HERE, seen, RUNNING) if not finding.ok] == ["c"]


def test_a_device_that_has_not_joined_and_a_resource_on_no_node_are_found() -> None:
    seen = Seen((HERE,), (), ("10.0.0.1",), ("gpu_1060", "device_b"))
    devices = (Device("10.0.0.1", (), head=True), Device("10.0.0.3", (), head=False))
    assert [finding.ok for finding in judge_devices(devices, seen)] == [True, False]
    wanted = wanted_resources(load_settings(bitnet_auto_spawn=False))
    assert wanted == {"gpu_1060": ["grain"], "device_b": ["cartridge"], "device_c": ["kobold"]}
    missing = [finding.what for finding in judge_resources(wanted, seen, "cluster") if not finding.ok]
    assert missing == ["device_c (kobold) is on no node"]


def test_a_token_that_others_can_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert token_finding("a", needed=False).ok
    assert not token_finding("a", needed=True).ok
    path.write_text("t")
    path.chmod(0o644)
    assert token_finding("a", needed=False).remedy == f"Run `chmod 600 {path}`."
    path.chmod(0o600)
    assert token_finding("a", needed=True).ok


def test_a_redis_that_is_not_there_is_a_problem_of_the_node(tmp_path: Path) -> None:
    facts = look(load_settings(kitbash_state_dir=tmp_path, kitbash_cache_dir=tmp_path / "none" / "yet"))
    assert facts.redis_problem.startswith("Redis does not answer")
    assert facts.redis_remedy
    assert facts.free_bytes > 0
