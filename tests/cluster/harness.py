"""The cluster under test and how tests look at it from outside: processes, ports, commands, cartridges."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from kitbash_ray import Kitbash
from kitbash_ray.config import CLUSTER_MARK, PROJECT, Settings
from kitbash_ray.state import Running
from kitbash_ray.token import find_token
from kitbash_ray.types import Answer
from tests.asking import Asked, again_and_again

T = TypeVar("T")

KITBASH = Path(sys.executable).with_name("kitbash")
#: Seconds that noise on a shared machine may cost on top of any limit.
SLACK_S = 5.0
#: The fact that answers "What is ATP?", in cartridges/biochemistry.
ATP = "atp-energy-currency"
#: No cartridge knows it, so it goes through every layer.
UNKNOWN = "Who won the 1998 football World Cup?"

#: A cartridge that no general question may be answered from.
FICTION = {
    "id": "zarquon-ruler",
    "fact": "The moon of Zarquon is ruled by Empress Vell the Ninth, who was elected by the tides.",
    "asks": ["Who rules the moon of Zarquon?", "Who is the ruler of Zarquon's moon?"],
    "source": "made up for the tests",
    "level": "narrative",
}


@dataclass(frozen=True)
class Cluster:
    """A started cluster with its settings and the folder of its cartridges."""

    settings: Settings
    found: Running
    cartridges: Path

    @property
    def url(self) -> str:
        return self.found.url

    @property
    def token(self) -> str:
        return find_token(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which a command finds this cluster."""
        return {
            **os.environ,
            "KITBASH_STATE_DIR": str(self.settings.state_dir),
            "KITBASH_PORT": str(self.settings.kitbash_port),
            "KITBASH_DASHBOARD_PORT": str(self.settings.kitbash_dashboard_port),
            "CARTRIDGES_DIR": str(self.cartridges),
        }

    def http(self, **options: Any) -> httpx.Client:
        """A client without retries; `headers` of None leaves the token out."""
        headers = options.pop("headers", {"Authorization": f"Bearer {self.token}"})
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)

    def layers(self) -> dict[str, dict[str, Any]]:
        """Every layer by name, as /v1/layers tells."""
        with self.http() as http:
            reply = http.get("/v1/layers")
        reply.raise_for_status()
        return {layer["layer"]: layer for layer in reply.json()}

    def pid(self, layer: str) -> int:
        return int(self.layers()[layer]["pid"])

    def command(self, *arguments: str, stdin: str | bytes = b"", **changes: str) -> subprocess.CompletedProcess[str]:
        """Run `kitbash ARGUMENTS` to its end, outside a terminal."""
        return run([str(KITBASH), *arguments], {**self.environment, **changes}, stdin)


def run(command: list[str], environment: dict[str, str], stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(command, env=environment, input=given, capture_output=True, timeout=120, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def eventually(look: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value of `look`, which may raise while things are on their way."""
    end = time.monotonic() + seconds
    problem: Exception | None = None
    while time.monotonic() < end:
        try:
            if found := look():
                return found
            problem = None
        except (httpx.HTTPError, AssertionError, KeyError, OSError) as error:
            problem = error
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}") from problem


@contextmanager
def asking(cluster: Cluster, question: str) -> Iterator[Asked[Answer]]:
    """A client asks `question` again and again meanwhile."""
    with (
        Kitbash(settings=cluster.settings) as client,
        again_and_again(lambda: client.ask(question), question, pause_s=0.02) as asked,
    ):
        yield asked


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still meanwhile: it keeps its memory and sockets, and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def processes(cluster_id: str, *roots: int) -> list[psutil.Process]:
    """Living processes that carry the cluster's mark, are one of `roots` or belong to its session."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if process.environ().get(CLUSTER_MARK) == cluster_id or os.getsid(process.pid) in roots:
                found.append(process)
    return found


def naming(text: str) -> list[psutil.Process]:
    """Living processes whose command line, or the title in its place, names `text`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if text in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def listening(found: list[psutil.Process]) -> set[int]:
    """The TCP ports that these processes listen on."""
    ports = set()
    for process in found:
        with suppress(psutil.Error):
            ports |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return ports


def listeners(ports: set[int]) -> set[int]:
    """Those of `ports` that still take connections."""
    taken = set()
    for port in ports:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                taken.add(port)
    return taken


def copy_cartridges(folder: Path) -> Path:
    """Three of the project's cartridges, so that an edit is indexed in a second, and one of fiction."""
    for name in ("biochemistry", "ray_redis", "kitbash"):
        shutil.copytree(PROJECT / "cartridges" / name, folder / name)
    write_cartridge(folder, "zarquon", FICTION, faction="fiction")
    return folder


def write_cartridge(library: Path, name: str, *facts: dict[str, Any], faction: str = "general") -> Path:
    """Write or overwrite a cartridge; facts.yaml first, so that it is whole when it is seen."""
    folder = library / name
    folder.mkdir(exist_ok=True)
    partial = folder / "facts.partial"
    partial.write_text(yaml.safe_dump(list(facts), sort_keys=False))
    partial.replace(folder / "facts.yaml")
    manifest = f'name = "{name}"\nversion = "1"\nfaction = "{faction}"\nlicence = "CC0"\ndescription = "a test"\n'
    if not (folder / "cartridge.toml").exists():
        (folder / "cartridge.toml").write_text(manifest)
    return folder


def fact_text(fact_id: str, cartridge: str = "biochemistry") -> str:
    """The text of a fact of the project's own cartridges."""
    facts = yaml.safe_load((PROJECT / "cartridges" / cartridge / "facts.yaml").read_text())
    return next(str(fact["fact"]) for fact in facts if fact["id"] == fact_id)
