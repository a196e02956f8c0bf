"""The grain router: owns layer 0's index, keeps it in step with the cartridges and publishes it.

Published means: immutable numpy arrays in Ray's object store. A front-door replica on the same
node maps them without a copy and looks up in its own process; no question passes through here.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import ray

from actors.heartbeat import Heartbeat
from kitbash_ray.config import Settings
from kitbash_ray.knowledge.index import open_builder
from kitbash_ray.watch import Watch

#: Seconds that `snapshot` waits for something new before it says that there is nothing.
LONG_POLL_S = 10.0
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One published index. `arrays` holds one reference, in a list so that Ray passes it as it is."""

    version: str
    arrays: list[ray.ObjectRef]  # type: ignore[type-arg]
    grains: int
    problems: tuple[str, ...]


class GrainRouter:
    """Builds and publishes; see the module's docstring."""

    def __init__(self, settings: Settings) -> None:
        self._builder = open_builder(settings)
        version = self._builder.build()
        self._snapshot = self._publish(version)
        self._watch = Watch(self._builder.version, version, self._rebuild)
        Heartbeat("grain_router", "grain", settings, self._status)

    async def snapshot(self, known: str | None = None) -> Snapshot | None:
        """The published index, at once unless it is the `known` one; None if nothing new came."""
        end = time.monotonic() + LONG_POLL_S
        while self._snapshot.version == known:
            if time.monotonic() > end:
                return None
            await asyncio.sleep(LOOK_EVERY_S)  # the watch is a thread, which cannot set an asyncio.Event
        return self._snapshot

    async def ready(self) -> str:
        """Returns once the actor serves: the version of its index."""
        return self._snapshot.version

    def _publish(self, version: str) -> Snapshot:
        arrays = self._builder.grains(version)
        grains = len(arrays["offsets"]) - 1
        return Snapshot(version, [ray.put(dict(arrays))], grains, self._builder.problems)

    def _rebuild(self, version: str) -> None:
        self._snapshot = self._publish(version)

    def _status(self) -> dict[str, str]:
        problems = (*self._snapshot.problems, *([self._watch.problem] if self._watch.problem else []))
        return {
            "state": "ready",
            "content": self._snapshot.version,
            "load": "0",  # no question passes through here
            "grains": str(self._snapshot.grains),
            "reason": "; ".join(problems),
        }


GrainRouterActor = ray.remote(num_cpus=0, max_restarts=-1)(GrainRouter)
