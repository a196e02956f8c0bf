"""Kitbash on three simulated hosts: `ray up` of a copy of the project, and how one asks and looks at it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from kitbash_ray.config import PROJECT, load_settings
from kitbash_ray.devices import CLUSTER_FILE
from kitbash_ray.knowledge import extractor, verifier
from kitbash_ray.knowledge.index import open_builder
from kitbash_ray.knowledge.low_rank import ensure_changed
from kitbash_ray.tiny_model import write_tiny_gguf
from tests.cluster.harness import copy_cartridges

from .bed import Bed, Host

KOBOLD_TIMEOUT_MS = 8000
#: `ray up` on a machine that is all three devices and has other things to do.
UP_S, DOWN_S = 600, 120


@dataclass
class ThreeDevices:
    """The bed with a cluster on it, and the folder that `ray up` was given."""

    bed: Bed
    project: Path
    took_s: float = 0.0

    @property
    def a(self) -> Host:
        return self.bed.hosts["a"]

    @property
    def b(self) -> Host:
        return self.bed.hosts["b"]

    @property
    def c(self) -> Host:
        return self.bed.hosts["c"]

    def ray(self, *arguments: str, seconds: float) -> str:
        """Run Ray's launcher as somebody would on a laptop beside the three devices."""
        laptop = self.bed.folder / "laptop"
        laptop.mkdir(exist_ok=True)
        environment = {**os.environ, "HOME": str(laptop), "RAY_TMPDIR": str(laptop), "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        done = subprocess.run(
            command,
            cwd=self.project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
        told = done.stdout.decode(errors="replace")
        print(told, flush=True)
        assert done.returncode == 0, told[-2000:]
        return told

    def on(self, host: Host, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as its user does, over ssh."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        login = ["ssh", "-i", str(self.bed.key), *options, f"root@{host.address}"]
        quoted = "cd kitbash && " + " ".join(command)
        return subprocess.run([*login, quoted], capture_output=True, text=True, timeout=180, check=False)

    def inside(self, host: Host, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as if at the keyboard of a host, whose link may be cut."""
        [sshd] = psutil.Process(host.init.pid).children()
        enter = [
            "nsenter",
            "-t",
            str(sshd.pid),
            "-n",
            "-p",
            "-m",
            "-u",
            "env",
            "-i",
            f"HOME={self.bed.home}",
            "PATH=/usr/bin:/bin",
        ]
        return subprocess.run([*enter, "bash", "-c", command], capture_output=True, text=True, timeout=180, check=False)

    @property
    def url(self) -> str:
        return f"http://{self.a.address}:8000"

    @property
    def token(self) -> str:
        return (self.a.files / "home/.local/state/kitbash/token").read_text()

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=60, trust_env=False)

    def layers(self) -> dict[str, dict[str, Any]]:
        with self.http() as http:
            reply = http.get("/v1/layers")
        reply.raise_for_status()
        return {layer["layer"]: layer for layer in reply.json()}

    def pids(self, *names: str) -> dict[str, int]:
        """The processes of layers, as their devices number them."""
        layers = self.layers()
        return {name: int(layers[name]["pid"]) for name in names or ("grain", "bitnet", "cartridge", "kobold")}

    def ask(self, question: str) -> dict[str, Any]:
        with self.http() as http:
            reply = http.post("/v1/query", json={"query": question})
        reply.raise_for_status()
        answer: dict[str, Any] = reply.json()
        return answer


@contextmanager
def three_devices(**settings: Any) -> Iterator[ThreeDevices]:
    """All three devices with every layer ready; `settings` go into cluster.yaml."""
    with Bed() as bed:
        up = ThreeDevices(bed, _project(bed, settings))
        began = time.monotonic()
        up.ray("up", "-y", "--no-config-cache", "cluster.yaml", seconds=UP_S)
        up.took_s = time.monotonic() - began
        yield up


def _project(bed: Bed, given: dict[str, Any]) -> Path:
    """A copy of the project with its cluster file edited as its comments say, and three cartridges."""
    project = bed.folder / "project"
    project.mkdir()
    text = CLUSTER_FILE.read_text()
    for path in yaml.safe_load(text)["file_mounts"].values():
        if (PROJECT / path).is_dir() and path != "cartridges":
            shutil.copytree(PROJECT / path, project / path, ignore=shutil.ignore_patterns("__pycache__"))
        elif path != "cartridges":
            shutil.copy2(PROJECT / path, project / path)
    copy_cartridges(_made(project / "cartridges"))
    _share_cache(bed, project / "cartridges")
    settings = {
        "kobold_model": str(write_tiny_gguf(bed.folder / "kobold.gguf", seed=2)),
        "bitnet_model": str(write_tiny_gguf(bed.folder / "bitnet.gguf", seed=1)),
        "kobold_max_tokens": 16,
        "kobold_timeout": KOBOLD_TIMEOUT_MS,
        **given,
    }
    changes = {
        "192.168.1.10": bed.hosts["a"].address,
        "192.168.1.11": bed.hosts["b"].address,
        "192.168.1.12": bed.hosts["c"].address,
        "ssh_user: kitbash": "ssh_user: root",
        "~/.ssh/id_ed25519": str(bed.key),
        "    kitbash_ray_redis_port: 6381": "\n".join(f"    {name}: {value!r}" for name, value in settings.items()),
    }
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} does not stand in cluster.yaml once"
        text = text.replace(old, new)
    (project / "cluster.yaml").write_text(text)
    return project


def _share_cache(bed: Bed, cartridges: Path) -> None:
    """Give every host the models and vectors that this machine has: made once, and minutes on three hosts at a time."""
    settings = load_settings(cartridges_dir=cartridges)
    open_builder(settings).build()
    for shipped in (verifier.SHIPPED, extractor.SHIPPED):
        ensure_changed(settings.cache_dir, shipped)
    for host in bed.hosts.values():
        cache = _made(host.files / "home/.cache/kitbash")
        shutil.copytree(settings.cache_dir / "models", cache / "models", ignore=shutil.ignore_patterns("*.lock"))
        for vectors in settings.cache_dir.glob("vectors-*.sqlite3"):
            shutil.copy2(vectors, cache)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
