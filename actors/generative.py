"""What the actors of layers 1 and 4 share: a model, its load, and a bad model file that is survived."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from actors.heartbeat import Heartbeat
from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.direct import open_calibration
from kitbash_ray.errors import ModelError
from kitbash_ray.layers.generative import GenerativeLayer
from kitbash_ray.types import LayerResult, Query


class GenerativeActor:
    """A layer that streams. Without a usable model it abstains and says why."""

    def __init__(self, name: str, opened: Callable[[Settings, Calibration], GenerativeLayer], settings: Settings) -> None:
        try:
            self._layer = opened(settings, open_calibration(settings))
        except ModelError as error:  # an actor that dies of a bad file would be restarted for ever
            self._layer = GenerativeLayer(name, None, missing=str(error), max_tokens=1)
        self._busy = 0
        Heartbeat(name, name, settings, self._status)

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...]) -> AsyncGenerator[str | LayerResult, None]:
        self._busy += 1
        try:
            async with aclosing(self._layer.stream(query, so_far)) as items:
                async for item in items:
                    yield item
        finally:
            self._busy -= 1

    async def ready(self) -> str:
        """Returns once the actor serves: its model's name, or why there is none."""
        return self._layer.engine.name if self._layer.engine else str(self._layer.unavailable)

    def _status(self) -> dict[str, str]:
        engine = self._layer.engine
        return {
            "state": "ready" if engine else "unavailable",
            "model": engine.name if engine else "",
            "load": str(self._busy),
            "reason": self._layer.unavailable or "",
        }
