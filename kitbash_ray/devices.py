"""The devices of cluster.yaml: which address has which Ray resources, and which of them this machine is.

Ray's launcher knows one kind of worker only, so a node looks itself up here. What Ray itself
reads of the file (ssh, commands, files) is not checked here.
"""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from kitbash_ray.config import PROJECT, Settings, load_settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.redis_server import Listen, RedisServer
from kitbash_ray.token import ensure_secret, find_secret

CLUSTER_FILE = PROJECT / "cluster.yaml"


@dataclass(frozen=True, slots=True)
class Device:
    """A machine of the cluster: its address, and the resources that pin layers to it."""

    address: str
    resources: tuple[str, ...]
    head: bool


@dataclass(frozen=True, slots=True)
class Devices:
    """All machines of a cluster file, the head first, and the settings that it holds."""

    file: Path
    all: tuple[Device, ...]
    settings: Mapping[str, Any]

    @property
    def head(self) -> Device:
        return self.all[0]

    def here(self) -> Device:
        """The device that this machine is. Raises ConfigError when it is none of them."""
        own = own_addresses()
        for device in self.all:
            if resolved(device.address) in own:
                return device
        listed = ", ".join(device.address for device in self.all)
        raise ConfigError(
            f"This machine ({', '.join(sorted(own))}) is none of the devices of {self.file} ({listed}): correct its addresses there."
        )


def read_devices(file: Path = CLUSTER_FILE) -> Devices:
    """What `file` says. Raises ConfigError with one sentence when it cannot be used."""
    try:
        provider = yaml.safe_load(file.read_text(encoding="utf-8"))["provider"]
        head = str(provider["head_ip"])
        addresses = [head, *map(str, provider["worker_ips"])]
        resources = {str(entry["address"]): tuple(map(str, entry["resources"])) for entry in provider["devices"]}
        given = dict(provider.get("settings") or {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{file} cannot be used ({why}): compare it with the one that comes with Kitbash.") from error
    if missing := [address for address in addresses if address not in resources]:
        raise ConfigError(f"{file} lists no resources for {', '.join(missing)}: add them under `devices`.")
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"{file} gives two devices the same address.")
    return Devices(file, tuple(Device(address, resources[address], address == head) for address in addresses), given)


def cluster_settings(devices: Devices) -> Settings:
    """The settings on a device of a cluster: those of the cluster file, and the head's Redis with its password."""
    given = {"kitbash_host": devices.head.address, **devices.settings}
    own = load_settings(**given)
    if not own.embedded_redis:
        return own
    return load_settings(
        **given,
        redis_host=devices.head.address,
        redis_password=find_secret(redis_password_file(own)),
    )


def head_redis(settings: Settings) -> RedisServer | None:
    """The Redis that the head starts, None when the settings name another one."""
    if settings.redis_url or settings.redis_host is None or settings.redis_password is None:
        return None
    if resolved(settings.redis_host) not in own_addresses():
        return None
    return RedisServer(settings.state_dir, Listen(settings.redis_host, settings.redis_port, settings.redis_password))


def ray_redis(settings: Settings) -> RedisServer:
    """The Redis in which Ray's GCS on the head keeps its state.

    One of its own, so that trouble with the blackboard's does not reach Ray. It listens on the
    loopback only, because Ray shows its password on the command line of the GCS.
    """
    listen = Listen("127.0.0.1", settings.kitbash_ray_redis_port, ray_redis_password(settings))
    return RedisServer(_ray_folder(settings), listen)


def ray_redis_password(settings: Settings) -> str:
    return ensure_secret(_ray_folder(settings) / "password", secrets.token_hex(32))


def forget_ray(settings: Settings) -> None:
    """Remove what Ray kept there. Its next cluster begins without the last one's actors."""
    shutil.rmtree(_ray_folder(settings), ignore_errors=True)


def _ray_folder(settings: Settings) -> Path:
    return settings.state_dir / "ray"


def redis_password_file(settings: Settings) -> Path:
    return settings.state_dir / "redis_password"


def own_addresses() -> set[str]:
    """The IPv4 addresses of this machine but for the loopback's."""
    interfaces = psutil.net_if_addrs().values()
    found = {each.address for addresses in interfaces for each in addresses if each.family == socket.AF_INET}
    return {address for address in found if not address.startswith("127.")}


def resolved(address: str) -> str:
    """The IPv4 address of a name; one that only other machines know stays as it is."""
    try:
        return socket.gethostbyname(address)
    except OSError:
        return address
