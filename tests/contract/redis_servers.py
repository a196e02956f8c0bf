"""Redis as people run it: one server, a master with a replica under three Sentinels, a cluster of one node."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from actors.haproxy import free_port
from kitbash_ray.redis_server import redis_program

START_S = 10.0
#: A master that says nothing for so long is voted down.
DOWN_AFTER_MS = 500
SERVICE = "kitbash"


class Server:
    """A redis-server on a port of the loopback."""

    def __init__(self, folder: Path, *options: str, port: int | None = None, sentinel: str = "", password: str = "") -> None:
        """`sentinel` is what one is to watch; `password` is the one that `options` set."""
        self.port, self.password = port or free_port(), password
        self._command = [redis_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        if sentinel:
            file = folder / f"sentinel-{self.port}.conf"
            file.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n{sentinel}\n")
            self._command = [redis_program(), str(file), "--sentinel"]
        self._command += options
        self.start()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.place}"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: self.told("PING"), f"redis-server answers at {self.place}")
        except BaseException:
            self.kill()
            raise

    def told(self, *command: str) -> Any:
        """What it says to a command."""
        with redis.Redis(port=self.port, password=self.password, decode_responses=True) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *reason: object) -> None:
        self.kill()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process stands still meanwhile: connections are taken for it, and nothing is answered."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Link:
    """A connection to a server through which nothing comes while it is cut; no end is told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open = asyncio.Event()
        self.open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._join, "127.0.0.1")
        return self

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *reason: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            self._tasks.add(asyncio.create_task(self._carry(source, sink)))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self.open.wait()
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


class Sentinels:
    """A master, its replica, and three Sentinels that replace one by the other."""

    def __init__(self, password: str = "") -> None:
        """With a password, that of the Sentinels is its reverse."""
        self._password = password
        login = ("--requirepass", password, "--masterauth", password) if password else ()
        with ExitStack() as stack:
            folder = stack.enter_context(_folder())
            # Without the delay of a master that would wait for more replicas.
            options = ("--repl-diskless-sync-delay", "0", *login)
            self.master = stack.enter_context(Server(folder, *options, password=password))
            follow = ("--replicaof", "127.0.0.1", str(self.master.port))
            self.replica = stack.enter_context(Server(folder, *options, *follow, password=password))
            watch = (
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            if password:
                watch += f"sentinel auth-pass {SERVICE} {password}\n"
                watch += f"requirepass {password[::-1]}\nsentinel sentinel-pass {password[::-1]}\n"
            self.sentinels = [stack.enter_context(Server(folder, sentinel=watch, password=password[::-1])) for _ in range(3)]
            until(lambda: self.replica.told("INFO", "replication")["master_link_status"] == "up", "the replica follows")
            until(lambda: all(map(self._knows_all, self.sentinels)), "the Sentinels know each other")
            self.close = stack.pop_all().close

    @property
    def url(self) -> str:
        places = ",".join(sentinel.place for sentinel in self.sentinels)
        if not self._password:
            return f"redis+sentinel://{places}/{SERVICE}"
        return f"redis+sentinel://:{self._password}@{places}/{SERVICE}?sentinel_password={self._password[::-1]}"

    def _knows_all(self, sentinel: Server) -> bool:
        found = sentinel.told("SENTINEL", "MASTER", SERVICE)
        return (int(found["num-slaves"]), int(found["num-other-sentinels"])) == (1, 2)


class Cluster:
    """A cluster of one node that has all slots."""

    def __init__(self, password: str = "") -> None:
        self._login = f":{password}@" if password else ""
        with ExitStack() as stack:
            folder = stack.enter_context(_folder())
            options = ("--cluster-enabled", "yes", "--appendonly", "yes", "--requirepass", password)
            self.node = stack.enter_context(Server(folder, *options, port=_port_with_bus(), password=password))
            self.node.told("CLUSTER", "ADDSLOTS", *map(str, range(16_384)))
            until(lambda: "cluster_state:ok" in self.node.told("CLUSTER", "INFO"), "the cluster is complete")
            self.close = stack.pop_all().close

    @property
    def url(self) -> str:
        return f"redis+cluster://{self._login}{self.node.place}"


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _port_with_bus() -> int:
    """A free port; the nodes of a cluster talk to each other 10,000 above it."""
    while True:
        port = free_port()
        with suppress(OSError, OverflowError), socket.socket() as bus:
            bus.bind(("127.0.0.1", port + 10_000))
            return port


def until(look: Callable[[], object], what: str, seconds: float = START_S) -> None:
    """Wait for something that another program does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(RedisError, OSError):  # it is on its way
            if look():
                return
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")
