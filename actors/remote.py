"""Actors that look like the members of a layer. The only place where a layer's answer crosses a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError

from kitbash_ray.errors import KitbashError, LayerError, LayerUnavailable
from kitbash_ray.replicas import Health, StreamingReplicas
from kitbash_ray.types import LayerResult, Query

#: The concurrency group for what must not wait behind questions: health checks, and giving up.
CONTROL = "control"
#: What Ray is told of an actor that is a member of a layer.
MEMBER: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "concurrency_groups": {CONTROL: 8}}


class RemoteMember:
    """An actor that does a layer's work. Being cancelled cancels the actor's call."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle

    async def health(self) -> Health:
        told: Health = await self._told(self._handle.health.options(concurrency_group=CONTROL).remote())
        return told

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        call = self._handle.answer.remote(query, so_far)
        try:
            result: LayerResult = await self._told(call)
        except asyncio.CancelledError:
            ray.cancel(call)
            raise
        return result

    async def _told(self, call: Any) -> Any:
        try:
            return await call
        except RayError as error:
            raise _translated(self.name, error) from error


class RemoteStreamingMember(RemoteMember):
    """The same for a layer that shows its answer while it makes it."""

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
                self._handle.give_up.options(concurrency_group=CONTROL).remote(query.id)
                ray.cancel(call)

    async def adapters(self) -> dict[str, Any]:
        """The adapter in use, the one before it, and those that are there."""
        return dict(await self._told(self._handle.adapters.remote()))

    async def use_adapter(self, name: str | None) -> dict[str, Any]:
        return dict(await self._told(self._handle.use_adapter.remote(name)))

    async def roll_back_adapter(self) -> dict[str, Any]:
        return dict(await self._told(self._handle.roll_back_adapter.remote()))


def models(layer: Any) -> list[RemoteStreamingMember]:
    """The actors of a layer that hold its model, in the order of their names."""
    members = layer.members if isinstance(layer, StreamingReplicas) else []
    return [member for member in members if isinstance(member, RemoteStreamingMember)]


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
