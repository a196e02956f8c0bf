"""Layer 2 on its device: the table over all cartridges, kept in step with them."""

from __future__ import annotations

import ray

from actors.heartbeat import Heartbeat, own_name
from actors.remote import MEMBER
from kitbash_ray.config import Settings
from kitbash_ray.direct import open_calibration
from kitbash_ray.knowledge.grain_index import GrainIndex
from kitbash_ray.knowledge.index import open_builder
from kitbash_ray.knowledge.retrieval import Retrieval
from kitbash_ray.layers.cartridge import open_cartridge
from kitbash_ray.replicas import Health
from kitbash_ray.types import LayerResult, Query
from kitbash_ray.watch import Watch


class Cartridge:
    """Answers from retrieved facts with citations."""

    def __init__(self, settings: Settings) -> None:
        self._builder = open_builder(settings)
        self._version = self._builder.build()
        opened, calibration = self._open(self._version), open_calibration(settings)
        self._layer = open_cartridge(*opened, calibration, self._builder.embedder, settings)
        self._busy = 0
        self._watch = Watch(self._builder.version, self._version, self._rebuild)
        Heartbeat(own_name("cartridge"), "cartridge", settings, self._status)

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        self._busy += 1
        try:
            return await self._layer.answer(query, so_far)
        finally:
            self._busy -= 1

    async def health(self) -> Health:
        return Health(load=self._busy)

    async def ready(self) -> str:
        """Returns once the actor serves: the version of its table."""
        return self._version

    def _open(self, version: str) -> tuple[Retrieval, GrainIndex]:
        return Retrieval(self._builder.table(version)), GrainIndex(self._builder.grains(version))

    def _rebuild(self, version: str) -> None:
        self._layer.swap(*self._open(version))
        self._version = version

    def _status(self) -> dict[str, str]:
        return {
            "state": "ready",
            "content": self._version,
            "load": str(self._busy),
            "reason": self._watch.problem or "",
        }


CartridgeActor = ray.remote(**MEMBER)(Cartridge)
