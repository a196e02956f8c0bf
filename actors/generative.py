"""What the actors of layers 1 and 4 share: a model, its load, and a bad model file that is survived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec

from actors.heartbeat import Heartbeat, own_name
from kitbash_ray.adapters import Adapters, names
from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.direct import open_calibration
from kitbash_ray.errors import KitbashError
from kitbash_ray.layers.generative import GenerativeLayer
from kitbash_ray.replicas import Health
from kitbash_ray.types import LayerResult, Query


class GenerativeActor:
    """A layer that streams. Without a usable model it abstains and says why."""

    def __init__(self, name: str, opened: Callable[[Settings, Calibration], GenerativeLayer], settings: Settings) -> None:
        try:
            self._layer = opened(settings, open_calibration(settings))
        except KitbashError as error:  # an actor that dies of a bad file or address would be restarted for ever
            self._layer = GenerativeLayer(name, None, missing=str(error), max_tokens=1)
        self._working: dict[str, asyncio.Task[None]] = {}
        self._cache_dir = settings.cache_dir
        self._adapters = Adapters(self._layer.engine, name, settings.cache_dir)
        self._fault = self._adapters.restore()
        Heartbeat(own_name(name), name, settings, self._status)

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...]) -> AsyncGenerator[str | LayerResult, None]:
        """Pieces of text, then the result. Pieces that wait while Ray carries one go on together."""
        items: asyncio.Queue[str | LayerResult | Exception] = asyncio.Queue()
        task = self._working[query.id] = asyncio.create_task(self._work(query, so_far, items))
        task.add_done_callback(lambda _: self._working.pop(query.id, None))
        try:
            while True:
                item = await items.get()
                while isinstance(item, str) and not items.empty():
                    text, item = item, items.get_nowait()
                    if not isinstance(item, str):
                        yield text
                    else:
                        item = text + item
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, LayerResult):
                    return
        finally:
            task.cancel()

    async def give_up(self, query_id: str) -> None:
        """Stop working on a query. Cancelling the call of `stream` is not enough: while Ray carries a
        piece, the generator is not running and hears of it only when it is garbage-collected."""
        if task := self._working.get(query_id):
            task.cancel()

    async def _work(
        self, query: Query, so_far: tuple[LayerResult, ...], items: asyncio.Queue[str | LayerResult | Exception]
    ) -> None:
        try:
            async with aclosing(self._layer.stream(query, so_far)) as made:
                async for item in made:
                    items.put_nowait(item)
        except Exception as error:  # raised where Ray sees it
            items.put_nowait(error)

    async def health(self) -> Health:
        return Health(load=len(self._working), loaded=self._layer.engine is not None)

    async def adapters(self) -> dict[str, object]:
        """The adapter in use, the one before it, and the names of all that are on this device."""
        return {**msgspec.to_builtins(self._adapters.choice), "names": names(self._cache_dir)}

    async def use_adapter(self, name: str | None) -> dict[str, object]:
        """Swap the adapter between two generations; None for the bare model."""
        await self._adapters.use(name)
        return await self.adapters()

    async def roll_back_adapter(self) -> dict[str, object]:
        await self._adapters.roll_back()
        return await self.adapters()

    async def ready(self) -> str:
        """Returns once the actor serves: its model's name, or why there is none."""
        return self._layer.engine.name if self._layer.engine else str(self._layer.unavailable)

    def _status(self) -> dict[str, str]:
        engine = self._layer.engine
        return {
            "state": "ready" if engine else "unavailable",
            "model": engine.name if engine else "",
            "load": str(len(self._working)),
            "adapter": self._adapters.choice.current or "",
            "reason": self._layer.unavailable or self._fault or "",
        }
