"""The front door's real routes on a port of their own, for workers outside the cluster, without Ray."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from actors.frontdoor import with_workers
from actors.orchestrator import Orchestrator
from kitbash_ray import __version__
from kitbash_ray.blackboard import Blackboard
from kitbash_ray.calibration import load_calibration
from kitbash_ray.cascade import Cascade
from kitbash_ray.config import load_settings
from kitbash_ray.feed import Feed
from kitbash_ray.keys import add_key, keys_file
from kitbash_ray.policy import Calibrated
from kitbash_ray.redis_client import connect
from kitbash_ray.replicas import StreamingReplicas
from kitbash_ray.testing import ScriptedLayer
from kitbash_ray.types import Answer, LayerResult, Query
from serve_app import build_http
from tests.tasks import ended

from .waiting import until

TOKEN = "the-token-of-this-test"
NOTHING = LayerResult("grain", "abstained", reason="nothing near")
CALIBRATION = load_calibration().version
ME = {"worker": "pi", "version": __version__, "calibration": CALIBRATION}


class FrontDoor:
    """The routes of serve_app on a port of their own, with layers that only workers do. It can be stopped and started."""

    def __init__(self, folder: Path, redis_url: str, recorder: Any, layers: tuple[str, ...]) -> None:
        self.settings = load_settings(redis_url=redis_url, kitbash_state_dir=folder, bitnet_timeout=30_000)
        self._redis = connect(redis_url)
        cascade = Cascade(
            [ScriptedLayer("grain", NOTHING)], Calibrated(load_calibration()), timeouts_s=dict.fromkeys(layers, 30.0)
        )
        self.orchestrator = Orchestrator(cascade, recorder, Blackboard(self._redis), Feed(self._redis))
        self._app = build_http(self.orchestrator, self.settings, TOKEN)
        self._socket = _bound(0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._tasks = [
            asyncio.ensure_future(with_workers(self.settings, cascade, StreamingReplicas(name, []))) for name in layers
        ]

    def key(self, layer: str, name: str = "pi") -> str:
        return add_key(keys_file(self.settings), name, None, layer)

    def http(self, key: str = TOKEN) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False)

    async def start(self) -> None:
        if self._socket.fileno() < 0:
            self._socket = _bound(self.port)
        self._server = uvicorn.Server(uvicorn.Config(self._app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        self._serving = asyncio.ensure_future(self._server.serve([self._socket]))
        await until(lambda: self._server.started, "the front door is open")

    async def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        await asyncio.wait((self._serving,))
        self._socket.close()

    async def close(self) -> None:
        await self.stop()
        await ended(self._tasks)
        await self._redis.aclose()

    async def ask(self, text: str, layer: str = "bitnet") -> Answer:
        return await self.orchestrator.ask(Query(text, layers=(layer,)))

    async def has_worker(self) -> bool:
        return bool((await self.layer())["state"] == "ready")

    async def layer(self, name: str = "bitnet") -> dict[str, Any]:
        async with self.http() as http:
            layers = (await http.get("/v1/layers")).json()
        return next(layer for layer in layers if layer["layer"] == name)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
