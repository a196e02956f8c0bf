"""docker-compose.yml and the Dockerfile against the project: commands, devices, settings, secrets. No container is started."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from kitbash_ray.cli import app
from kitbash_ray.config import PROJECT, SECRETS, Settings, load_settings
from kitbash_ray.devices import read_devices

COMPOSE, DEVICES = PROJECT / "docker-compose.yml", PROJECT / "docker" / "cluster.yaml"
RAYS_TOKEN = "ray_token"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def has_compose() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


def test_docker_takes_the_file(tmp_path: Path) -> None:
    if not has_compose():
        pytest.skip("there is no `docker compose`: only the structure is looked at")
    done = subprocess.run(["docker", "compose", "-f", str(COMPOSE), "config", "-q"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_each_device_is_a_service_that_starts_as_what_it_is(compose: dict[str, Any]) -> None:
    services = compose["services"]
    devices = read_devices(DEVICES)
    assert [device.resources for device in devices.all] == [("gpu_1060",), ("device_b",), ("device_c",)]
    assert {*services} == {"redis", *(device.address for device in devices.all)}
    for device in devices.all:
        command = services[device.address]["command"]
        assert command[:3] == ["kitbash", "node", "head" if device.head else "worker"]
        assert device.head or command[3:5] == ["--head", devices.head.address]
        parsed: Any = get_command(app)
        for name in command[1:3]:
            parsed = parsed.commands[name]
        assert parsed.make_context(command[2], command[3:]).params["block"]


def test_a_name_of_a_host_is_a_name_that_linux_takes(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert re.fullmatch(r"[a-z][a-z0-9-]*", service.get("hostname", "redis"))


def test_the_settings_of_the_services_are_settings(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable in service.get("environment", {}):
            assert variable.lower() in Settings.model_fields or variable == "RAY_AUTH_TOKEN_PATH"
        assert service.get("environment", {}).get("REDIS_HOST", "redis") == "redis", name


def test_secrets_come_from_files_that_nobody_commits(compose: dict[str, Any]) -> None:
    secrets = compose["secrets"]
    assert {name for name in secrets if name != RAYS_TOKEN} <= {*Settings.model_fields}
    assert {secret["file"] for secret in secrets.values()} == {f"./secrets/{name}" for name in secrets}
    assert "/secrets/" in (PROJECT / ".gitignore").read_text().splitlines()
    for service in compose["services"].values():
        assert {*service["secrets"]} <= {*secrets}
        assert service.get("environment", {}).get("RAY_AUTH_TOKEN_PATH") in (None, str(SECRETS / RAYS_TOKEN))
        assert not any(part in name for name in service.get("environment", {}) for part in ("PASSWORD", "TOKEN=", "KEY"))


def test_only_the_front_door_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"head": [f"127.0.0.1:8000:{load_settings().kitbash_port}"]}


def test_each_service_says_whether_it_is_well_and_keeps_what_must_last(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        named = {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")}
        assert named <= {*compose["volumes"]}
        for mounted in (volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./docker")):
            assert (PROJECT / mounted).exists()


def test_an_image_holds_what_ray_up_copies_to_a_device_and_no_secret() -> None:
    copied = {Path(path).parts[0] for path in yaml.safe_load((PROJECT / "cluster.yaml").read_text())["file_mounts"].values()}
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert kept == copied - {"cluster.yaml"}  # docker-compose.yml mounts another one in its place
