"""Fixtures of the contract suites: a Redis that can be stopped, recorders, and one query's events."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from kitbash_ray.blackboard import prefix_of
from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import load_settings
from kitbash_ray.layers.bitnet import BitnetLayer, open_bitnet
from kitbash_ray.layers.kobold import KoboldLayer, open_kobold
from kitbash_ray.queue import Queue
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.types import Answer, Event, LayerResult, Query, Source

from .minilm_gguf import write_minilm_gguf
from .queued import OpenQueue
from .redis_servers import Cluster, Sentinels
from .work_front_door import FrontDoor


class StoppableRedis:
    """A redis-server of one test."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder)
        self.url = f"unix://{self.server.socket}"
        self._process: psutil.Process | None = None

    def start(self) -> None:
        self._process = psutil.Process(self.server.start(dict(os.environ)))

    def stop(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)
            self._process = None


@pytest.fixture
def own_redis() -> Iterator[StoppableRedis]:
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))
    redis = StoppableRedis(folder)
    redis.start()
    yield redis
    redis.stop()
    shutil.rmtree(folder, ignore_errors=True)


#: What REDIS_URL may name. A module whose own `redis_kind` has these as params runs over all of them.
KINDS = ["embedded", "sentinel", "cluster"]


@pytest.fixture
def redis_kind() -> str:
    return "embedded"


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[str]:
    """A private Redis of this session. Without a redis-server the tests fail; they do not skip."""
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))  # short: a socket's path has 107 bytes
    server = RedisServer(folder)
    process = psutil.Process(server.start(dict(os.environ)))
    yield f"unix://{server.socket}"
    process.terminate()
    process.wait(10)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sentinels() -> Iterator[Sentinels]:
    servers = Sentinels()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    servers = Cluster()
    yield servers
    servers.close()


@pytest.fixture
def redis_url(redis_kind: str, redis_socket: str, request: pytest.FixtureRequest) -> str:
    if redis_kind == "embedded":
        return redis_socket
    return str(request.getfixturevalue({"sentinel": "sentinels", "cluster": "redis_cluster"}[redis_kind]).url)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the session's Redis of that kind, which is empty."""
    client = connect(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def prefix(redis: Redis) -> str:
    """How keys begin there."""
    return prefix_of(redis)


OpenRecorder = Callable[..., Recorder]


@pytest.fixture
async def open_recorder(tmp_path: Path) -> AsyncIterator[OpenRecorder]:
    """Open a recorder as the front door does; it is closed at the end."""
    opened: list[Recorder] = []

    def opens(url: str, *, level: str = "debug", feed_maxlen: int = 1000, ttl_s: int = 100) -> Recorder:
        spool = tmp_path / "spool"
        opened.append(Recorder(connect(url), ttl_s=ttl_s, feed_maxlen=feed_maxlen, level=level, spool=spool))
        return opened[-1]

    yield opens
    for recorder in opened:
        await recorder.close()


SOURCE = Source("bio", "bio:atp", "ATP carries „energy“ 🦠.", 0.9, "a book")


@pytest.fixture
def life() -> Callable[..., list[Event]]:
    """Everything that happens to one query: grain abstains, kobold streams and answers."""

    def events(query_id: str = "q_1", text: str = "What is\n'ATP'? 🦠 \x00 \\0") -> list[Event]:
        query = Query(text, id=query_id, asked_at=1000.5)
        result = LayerResult("kobold", "answered", text="It carries energy.", score=0.5, sources=(SOURCE,))
        answer = Answer(query_id, text, "answered", "It carries energy.", "kobold", sources=(SOURCE,), recorded=True)
        steps = [
            {"kind": "query.received", "query": query},
            {"kind": "layer.started", "layer": "grain", "query": query, "reason": "the cheapest first"},
            {"kind": "layer.finished", "layer": "grain", "result": LayerResult("grain", "abstained", reason="nothing near")},
            {"kind": "layer.started", "layer": "kobold", "query": query, "reason": 'grain "abstained"'},
            {"kind": "layer.delta", "layer": "kobold", "text": "It carries\nenergy 🦠"},
            {"kind": "layer.finished", "layer": "kobold", "result": result},
            {"kind": "query.finished", "answer": answer},
        ]
        return [Event(query_id, seq, 1000.5 + seq, **step) for seq, step in enumerate(steps)]  # type: ignore[arg-type]

    return events


@pytest.fixture
def bitnet(tiny_gguf: Path) -> BitnetLayer:
    return open_bitnet(load_settings(bitnet_model=tiny_gguf, bitnet_max_tokens=8), load_calibration())


@pytest.fixture
def kobold(tiny_gguf: Path) -> KoboldLayer:
    return open_kobold(load_settings(kobold_model=tiny_gguf, kobold_max_tokens=8), load_calibration())


@pytest.fixture
async def door(redis: Redis, redis_url: str, open_recorder: Any, tmp_path: Path) -> AsyncIterator[FrontDoor]:
    found = FrontDoor(tmp_path / "front", redis_url, open_recorder(redis_url), ("bitnet", "kobold"))
    await found.start()
    yield found
    await found.close()


@pytest.fixture
async def open_queue(redis: Redis, redis_url: str) -> AsyncIterator[OpenQueue]:
    clients: list[Redis] = []

    def opens(url: str = redis_url, *, length: int = 100, lease_s: float = 10.0) -> Queue:
        clients.append(connect(url))
        return Queue(clients[-1], length=length, ttl_s=100, lease_s=lease_s)

    yield opens
    for client in clients:
        await client.aclose()


@pytest.fixture
def queue(open_queue: OpenQueue) -> Queue:
    return open_queue()


@pytest.fixture(scope="session")
def minilm_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published MiniLM for llama.cpp."""
    return write_minilm_gguf(tmp_path_factory.mktemp("gguf") / "minilm.gguf")
