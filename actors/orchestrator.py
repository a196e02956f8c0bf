"""The orchestrator: one cascade, one recorder and one index per front-door replica.

It lives inside the replica, so a layer-0 answer costs no hop. Everything that happens to a
question is one stream of events; this class hands each to the recorder and to whoever asked.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from kitbash_ray.blackboard import Blackboard
from kitbash_ray.cascade import Cascade, Tell, as_stream
from kitbash_ray.errors import StoreError
from kitbash_ray.feed import Feed
from kitbash_ray.knowledge.grain_index import GrainIndex
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.recorder import Recorder
from kitbash_ray.types import ATTEMPT_EVENTS, Answer, Event, Query, Status

log = logging.getLogger(__name__)

#: Layers that answer inside this process: their events need not be written before they begin.
IN_PROCESS = frozenset({"grain"})


class Orchestrator:
    """Runs questions through the cascade and records what happens to them."""

    def __init__(
        self,
        cascade: Cascade,
        recorder: Recorder,
        blackboard: Blackboard,
        feed: Feed,
        *,
        shown_live: frozenset[str] = frozenset(),
        hear: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """`shown_live` are layers whose answer is taken whatever it is, so that a chat may show it while it is made.

        `hear` is told every event that is recorded.
        """
        self.cascade = cascade
        self.shown_live = shown_live
        self.recorder = recorder
        self.blackboard = blackboard
        self.feed = feed
        self._hear = hear
        #: Questions being worked on.
        self.in_flight = 0
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._called_off: set[str] = set()

    async def ask(self, query: Query) -> Answer:
        """The answer to `query`."""
        return _answer(await self._run(query))

    def events(self, query: Query) -> AsyncGenerator[Event, None]:
        """The events of `query`, each recorded before it is passed on. Closing this cancels the question."""
        return as_stream(lambda tell: self._run(query, tell))

    async def _run(self, query: Query, listener: Tell | None = None) -> Event:
        """Run `query` and record it; `listener` hears every event but the last, which is returned."""

        def tell(event: Event) -> Awaitable[None] | None:
            self._record(event)
            if listener:
                listener(event)
            # What another process will work on is on the blackboard before it begins.
            leaves = event.kind == "layer.started" and event.layer not in IN_PROCESS
            return self.recorder.flush() if leaves else None

        task = asyncio.current_task()
        assert task is not None
        self.in_flight += 1
        self._running[query.id] = task
        try:
            last = await self.cascade.run(query, tell)
            left = any(step.layer not in IN_PROCESS for step in _answer(last).path)
            if left or self.recorder.late:  # late: a moment shows whether Redis is away or only busy
                await self.recorder.flush()
            last = replace(last, answer=replace(_answer(last), recorded=self.recorder.healthy))
            self._record(last)
            if left:
                await self.recorder.flush()
        except BaseException:  # cancelled: leave no query running on the blackboard
            called_off = query.id in self._called_off
            if query.attempt and not called_off:  # a queued one: nobody has gone, and another worker goes on
                raise
            last = self.end(query, "cancelled", "it was called off" if called_off else "whoever asked is gone")
            if not called_off:
                raise
            if sys.version_info >= (3, 11):  # whoever waits gets the answer that it was called off
                task.uncancel()
        finally:
            self.in_flight -= 1
            if self._running.get(query.id) is task:  # not an earlier attempt that ends late
                del self._running[query.id]
            self._called_off.discard(query.id)
        return last

    def call_off(self, query_id: str) -> bool:
        """Cancel a question that this replica works on; False if it works on none of that id."""
        if task := self._running.get(query_id):
            self._called_off.add(query_id)
            task.cancel()
        return task is not None

    async def heed_calls(self) -> None:
        """Cancel what another replica was told to call off. Never returns."""
        while True:
            try:
                async for query_id in self.blackboard.called_off():
                    self.call_off(query_id)
            except StoreError:  # Redis is away; so is whoever would call
                await asyncio.sleep(1)

    async def judge(self, query_id: str, right: bool) -> bool:
        """Record that somebody found an answer right or wrong; False if there is no such answer."""
        await self.recorder.flush()
        known = await self.blackboard.query(query_id)
        if known is None or known.answer is None or known.answer.status != "answered":
            return False
        now = time.time()
        # Milliseconds number judgements after everything that happened before them.
        judged = Event(
            query_id, int(now * 1000), now, "query.judged", layer=known.answer.layer, answer=known.answer, right=right
        )
        self._record(judged)
        await self.recorder.flush()
        return True

    def end(self, query: Query, status: Status, reason: str) -> Event:
        """Record that `query` has ended in another way than by its cascade."""
        answer = Answer(query.id, query.text, status, reason=reason)
        last = (query.attempt + 1) * ATTEMPT_EVENTS - 1  # after every event that the cascade has numbered
        event = Event(query.id, last, time.time(), "query.finished", answer=answer, attempt=query.attempt)
        self._record(event)
        return event

    def cartridges(self) -> tuple[str, ...]:
        """Names of the cartridges that can answer now."""
        grain: Any = self.cascade.layers.get("grain")
        return grain.index.cartridges if grain else ()

    def _record(self, event: Event) -> None:
        self.recorder.append(event)
        self._hear(event)


def _answer(last: Event) -> Answer:
    assert last.answer is not None  # the last event of a cascade carries it
    return last.answer


async def follow_index(router: Any, layer: GrainLayer, version: str) -> None:
    """Swap `layer`'s index whenever the grain router has a new one. Never returns."""
    while True:
        try:
            snapshot = await router.snapshot.remote(version)
            if snapshot is not None and snapshot.version != version:
                layer.index = GrainIndex(await snapshot.arrays[0])
                version = snapshot.version
        except Exception as error:  # the router is restarting: the index at hand goes on serving
            log.warning("the grain router does not answer: %s", str(error).splitlines()[0])
            await asyncio.sleep(1)
