"""An actor that looks like a layer. The only place where a layer's answer crosses a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError

from kitbash_ray.errors import KitbashError, LayerError, LayerUnavailable
from kitbash_ray.types import LayerResult, Query


class RemoteLayer:
    """A layer whose work an actor does. Being cancelled cancels the actor's call."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        call = self._handle.answer.remote(query, so_far)
        try:
            result: LayerResult = await call
        except RayError as error:
            raise _translated(self.name, error) from error
        except asyncio.CancelledError:
            ray.cancel(call)
            raise
        return result


class RemoteStreamingLayer:
    """The same for a layer that shows its answer while it makes it."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        async for item in self.stream(query, so_far):
            if isinstance(item, LayerResult):
                return item
        raise LayerError(f"{self.name} ended without a result")

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...]) -> AsyncGenerator[str | LayerResult, None]:
        call = self._handle.stream.options(num_returns="streaming").remote(query, so_far)
        ended = False
        try:
            async for reference in call:
                item: str | LayerResult = await reference
                yield item
            ended = True
        except RayError as error:
            ended = True
            raise _translated(self.name, error) from error
        finally:
            if not ended:
                self._handle.give_up.remote(query.id)
                ray.cancel(call)

    async def adapters(self) -> dict[str, Any]:
        """The adapter in use, the one before it, and those that are there."""
        return await self._told(self._handle.adapters.remote())

    async def use_adapter(self, name: str | None) -> dict[str, Any]:
        return await self._told(self._handle.use_adapter.remote(name))

    async def roll_back_adapter(self) -> dict[str, Any]:
        return await self._told(self._handle.roll_back_adapter.remote())

    async def _told(self, call: Any) -> dict[str, Any]:
        try:
            told: dict[str, Any] = await call
        except RayError as error:
            raise _translated(self.name, error) from error
        return told


def _translated(name: str, error: RayError) -> KitbashError:
    """Ray's error as one of ours, in one sentence and without its stack trace."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, KitbashError):
        return error.cause
    if isinstance(error, RayTaskError):
        return LayerError(f"{type(error.cause).__name__}: {error.cause}")
    if isinstance(error, TaskCancelledError):
        return LayerError("the call was cancelled")
    if isinstance(error, RayActorError):
        return LayerUnavailable(f"the {name} actor is gone; Ray starts it again")
    return LayerError(f"{type(error).__name__}: {str(error).splitlines()[0]}")
