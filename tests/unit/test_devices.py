"""The devices of a cluster file: who is who, what is refused, and which one this machine is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitbash_ray.devices import Device, Devices, cluster_settings, own_addresses, read_devices, redis_password_file, resolved
from kitbash_ray.errors import ConfigError

THREE = """
provider:
  head_ip: &a 10.0.0.1
  worker_ips: [&b 10.0.0.2, &c 10.0.0.3]
  settings: {kobold_max_tokens: 7}
  devices:
    - {address: *c, resources: [device_c]}
    - {address: *a, resources: [gpu_1060]}
    - {address: *b, resources: [device_b, spare]}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_the_head_comes_first_and_each_device_has_its_resources(tmp_path: Path) -> None:
    devices = read_devices(written(tmp_path, THREE))
    assert devices.head == Device("10.0.0.1", ("gpu_1060",), head=True)
    assert devices.all[1:] == (
        Device("10.0.0.2", ("device_b", "spare"), head=False),
        Device("10.0.0.3", ("device_c",), head=False),
    )
    assert devices.settings == {"kobold_max_tokens": 7}


def test_the_cluster_file_that_ships_can_be_used() -> None:
    resources = [device.resources for device in read_devices().all]
    assert resources == [("gpu_1060",), ("device_b",), ("device_c",)]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("10.0.0.3", "10.0.0.2", "the same address"),
        ("    - {address: *c, resources: [device_c]}\n", "", "no resources for 10.0.0.3"),
        ("  devices:", "  others:", "KeyError"),
        ("provider:", "provider: [", "cannot be used"),
    ],
)
def test_a_broken_cluster_file_is_refused_with_one_sentence(tmp_path: Path, old: str, new: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        read_devices(written(tmp_path, THREE.replace(old, new)))
    assert "\n" not in str(raised.value)


def test_a_cluster_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        read_devices(tmp_path / "none.yaml")


def test_a_machine_that_is_no_device_says_so(tmp_path: Path) -> None:
    away = Devices(tmp_path / "cluster.yaml", (Device("203.0.113.7", (), head=True),), {})
    with pytest.raises(ConfigError, match=r"none of the devices .*203\.0\.113\.7"):
        away.here()


def test_a_machine_finds_itself_by_any_of_its_addresses(tmp_path: Path) -> None:
    if not (own := own_addresses()):
        pytest.skip("this machine has no address but the loopback's")
    there = Device(sorted(own)[0], ("device_b",), head=False)
    assert Devices(tmp_path, (Device("203.0.113.7", (), head=True), there), {}).here() == there


def test_a_device_may_be_given_by_its_name() -> None:
    assert resolved("localhost") == "127.0.0.1"
    assert resolved("no-such-host.invalid") == "no-such-host.invalid"


def test_with_a_redis_of_its_own_a_cluster_is_reached_at_its_head_all_the_same(tmp_path: Path) -> None:
    given = {"kitbash_state_dir": str(tmp_path), "redis_host": "redis"}
    settings = cluster_settings(Devices(tmp_path / "cluster.yaml", (Device("head", ("gpu_1060",), head=True),), given))
    assert (settings.url, settings.resolved_redis_url) == ("http://head:8000", "redis://redis:6379/0")


def test_the_settings_of_a_cluster_are_those_of_its_file_and_the_heads_redis(tmp_path: Path) -> None:
    given = {"kitbash_state_dir": str(tmp_path), "kobold_max_tokens": 7}
    devices = Devices(tmp_path / "cluster.yaml", (Device("10.0.0.1", ("gpu_1060",), head=True),), given)
    with pytest.raises(ConfigError, match="kitbash node setup"):
        cluster_settings(devices)
    (tmp_path / "redis_password").write_text("s3cret\n")
    settings = cluster_settings(devices)
    assert redis_password_file(settings) == tmp_path / "redis_password"
    assert settings.resolved_redis_url == "redis://:s3cret@10.0.0.1:6379/0"
    assert (settings.kobold_max_tokens, settings.url) == (7, "http://10.0.0.1:8000")


def test_an_unknown_setting_in_a_cluster_file_is_refused(tmp_path: Path) -> None:
    devices = Devices(tmp_path, (Device("10.0.0.1", (), head=True),), {"kobold_modle": "x"})
    with pytest.raises(ConfigError, match="KOBOLD_MODLE"):
        cluster_settings(devices)
