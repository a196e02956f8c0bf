"""A query's life as events: ask layers in the order the policy says, then answer.

`Cascade.run` is the only place where layers meet. It knows nothing of Ray, Redis or HTTP, and
nothing of who listens: the reply, the blackboard and the feed all hear the same events. The
last one carries the Answer. Cancelling a run cancels the layers that are at work.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from kitbash_ray.breaker import Breaker
from kitbash_ray.consensus import agreement, cite_the_same
from kitbash_ray.errors import KitbashError, LayerBusy, LayerError, LayerTimeout, LayerUnavailable
from kitbash_ray.policy import Asked, Decision, Policy, Situation
from kitbash_ray.types import (
    ATTEMPT_EVENTS,
    LAYER_NUMBERS,
    Answer,
    Event,
    EventKind,
    Layer,
    LayerResult,
    Query,
    Status,
    Step,
    StreamingLayer,
)

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout


log = logging.getLogger(__name__)

ASKED = Asked()

#: How near the meanings of two texts are, -1 to 1.
Cosine = Callable[[str, str], Awaitable[float]]

#: Hears of each event. What it returns for a `layer.started` is awaited before the layer is asked.
Tell = Callable[[Event], Awaitable[None] | None]


class Cascade:
    """Layers, cheapest first, under one policy. Holds no state of any query, only which layers were silent of late."""

    def __init__(
        self,
        layers: Sequence[Layer],
        policy: Policy,
        *,
        timeouts_s: Mapping[str, float],
        max_error: float = 0.05,
        cosine: Cosine | None = None,
    ) -> None:
        """`cosine` tells how near the meanings of two texts are; without it only cited facts are compared."""
        self.layers = {layer.name: layer for layer in layers}
        # Asked once here: a runtime check of a protocol costs more than a lookup in layer 0.
        self._streaming = {layer.name: layer for layer in layers if isinstance(layer, StreamingLayer)}
        #: Layer 0 has none: it works in this process.
        self.breakers = {name: Breaker() for name in self.layers if name != "grain"}
        self._policy = policy
        self._timeouts = timeouts_s
        self._max_error = max_error
        self._cosine = cosine

    def add(self, layer: Layer) -> None:
        """From now on `layer` is asked, too, where its number says."""
        self.breakers[layer.name] = Breaker()
        if isinstance(layer, StreamingLayer):
            self._streaming[layer.name] = layer
        layers = {**self.layers, layer.name: layer}
        self.layers = {name: layers[name] for name in sorted(layers, key=LAYER_NUMBERS.__getitem__)}

    def is_back(self, name: str) -> None:
        """The layer `name`, silent until now, shows life by other means than an answer: it need not wait for a trial."""
        self.breakers[name].succeeded()

    async def run(self, query: Query, tell: Tell) -> Event:
        """Tell the events of `query` as they happen, but for the last, `query.finished`: it is returned.

        So whoever runs a query can settle its record before the answer is passed on.
        """
        run = _Run(query, tell)
        run.tell("query.received", query=query)
        policy = ASKED if query.layers else self._policy
        while True:
            decision = policy.decide(self._situation(run))
            if decision.action != "ask":
                return run.event("query.finished", answer=run.answer(decision, policy, self.degraded))
            for name in decision.layers:
                reason = f"{decision.rule}: {decision.reason}"
                if settled := run.tell("layer.started", layer=name, query=query, reason=reason):
                    await settled
            await self._ask(run, decision.layers)

    @property
    def degraded(self) -> tuple[str, ...]:
        """Layers that are not asked at the moment, or only as a trial."""
        return tuple([name for name, breaker in self.breakers.items() if breaker.reason is not None])

    def _situation(self, run: _Run) -> Situation:
        asked = {result.layer for result in run.results}
        budget = self._max_error if run.query.max_error is None else run.query.max_error
        return Situation(
            results=tuple(run.results),
            waiting=tuple(name for name in run.query.layers or self.layers if name in self.layers and name not in asked),
            max_error=budget,
            strict=run.query.max_error is not None,
            seconds_left=run.seconds_left(),
        )

    async def _ask(self, run: _Run, names: tuple[str, ...]) -> None:
        if len(names) == 1:
            results = [await self._answer(run, names[0])]
        else:
            results = await asyncio.gather(*(self._answer(run, name) for name in names))
        for result in results:
            run.take(await self._compared(result, run.results))

    async def _compared(self, result: LayerResult, earlier: Sequence[LayerResult]) -> LayerResult:
        """`result` with how far it agrees with each earlier answer. Without a confidence it weighs nothing."""
        answers = [other for other in earlier if _weighs(other)]
        if not answers or not _weighs(result):
            return result
        return replace(result, agrees=tuple([(other.layer, await self._agreement(result, other)) for other in answers]))

    async def _agreement(self, first: LayerResult, second: LayerResult) -> float:
        if cite_the_same(first, second):
            return 1.0
        if self._cosine is None or not first.text or not second.text:
            return 0.0
        try:
            return round(agreement(first.text, second.text, await self._cosine(first.text, second.text)), 4)
        except KitbashError as error:  # a signal that is missing must not cost the answer
            log.warning("two answers could not be compared: %s", error)
            return 0.0

    async def _answer(self, run: _Run, name: str) -> LayerResult:
        """The layer's result; whatever goes wrong becomes a result too."""
        breaker = self.breakers.get(name)
        if breaker is None:
            return (await self._asked(run, name))[0]
        if not breaker.admits():
            return LayerResult(name, "failed", reason=f"not asked: {breaker.reason}")
        heard = breaker.heard
        try:
            result, silent = await self._asked(run, name)
        except BaseException:  # cancelled
            breaker.released()
            raise
        if silent:
            breaker.failed(result.reason or result.outcome, heard, result.latency_ms / 1000)
        elif result.outcome == "timeout":  # cut short by the question's own deadline
            breaker.released()
        else:
            breaker.succeeded()
        return result

    async def _asked(self, run: _Run, name: str) -> tuple[LayerResult, bool]:
        """The layer's result, and whether the layer was silent: not there, or not done in all of its time."""
        layer, began, silent = self.layers[name], time.perf_counter(), False
        own, left = self._timeouts.get(name, 60.0), run.seconds_left()
        seconds = own if left is None else max(0.0, min(own, left))
        try:
            async with timeout(seconds):
                if streaming := self._streaming.get(name):
                    result = await _streamed(run, streaming)
                else:
                    result = await layer.answer(run.query, tuple(run.results))
            if not isinstance(result, LayerResult) or result.layer != name:  # the policy counts by name
                raise LayerError(f"the layer gave {type(result).__name__} instead of its own result")
        except Exception as error:  # a layer's fault must not cost the question the next layer
            result = _failure(name, error, seconds)
            gone = isinstance(error, LayerUnavailable) and not isinstance(error, LayerBusy)
            silent = gone or (result.outcome == "timeout" and seconds == own)
        return replace(result, latency_ms=round((time.perf_counter() - began) * 1000, 3)), silent


def _weighs(result: LayerResult) -> bool:
    return result.outcome == "answered" and result.confidence is not None


async def _streamed(run: _Run, layer: StreamingLayer) -> LayerResult:
    """Tell the pieces of the answer, then give the result."""
    source = layer.stream(run.query, tuple(run.results))
    try:
        async for item in source:
            if not isinstance(item, str):
                return item
            run.tell("layer.delta", layer=layer.name, text=item)
    finally:
        if close := getattr(source, "aclose", None):
            await close()
    raise LayerError("the layer ended without a result")


def _failure(layer: str, error: Exception, seconds: float) -> LayerResult:
    if isinstance(error, TimeoutError | asyncio.TimeoutError | LayerTimeout):
        return LayerResult(layer, "timeout", reason=f"no answer within {seconds * 1000:.0f} ms")
    kind = "" if isinstance(error, LayerUnavailable) else f"{type(error).__name__}: "
    return LayerResult(layer, "failed", reason=f"{kind}{error}".strip()[:300])


async def as_stream(run: Callable[[Tell], Awaitable[Event]]) -> AsyncGenerator[Event, None]:
    """The events of a run as they happen, the last included. Closing this cancels the run."""
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.ensure_future(run(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield event
        yield task.result()
    finally:
        task.cancel()
        await asyncio.wait((task,))


class _Run:
    """What has happened to one query so far."""

    def __init__(self, query: Query, tell: Tell) -> None:
        self.query = query
        self.results: list[LayerResult] = []
        self._tell = tell
        self._began = time.perf_counter()
        self._seq = query.attempt * ATTEMPT_EVENTS

    def event(self, kind: EventKind, **fields: Any) -> Event:
        event = Event(self.query.id, self._seq, time.time(), kind, attempt=self.query.attempt, **fields)
        self._seq += 1
        return event

    def tell(self, kind: EventKind, **fields: Any) -> Awaitable[None] | None:
        return self._tell(self.event(kind, **fields))

    def take(self, result: LayerResult) -> None:
        self.results.append(result)
        self.tell("layer.finished", layer=result.layer, result=result)

    def seconds_left(self) -> float | None:
        if self.query.deadline_s is None:
            return None
        return self.query.deadline_s - (time.time() - self.query.asked_at)

    def answer(self, decision: Decision, policy: Policy, degraded: tuple[str, ...]) -> Answer:
        chosen = decision.result
        sure = chosen.confidence if chosen and decision.confidence is None else decision.confidence
        accepted = decision.action == "accept" and chosen is not None
        return Answer(
            query_id=self.query.id,
            query=self.query.text,
            status=self._status(accepted),
            answer=chosen.text if accepted and chosen else None,
            layer=chosen.layer if accepted and chosen else None,
            confidence=_rounded(sure),
            sources=chosen.sources if chosen else (),
            path=tuple(self._path(decision)),
            latency_ms=round((time.perf_counter() - self._began) * 1000, 3),
            reason=decision.reason,
            candidate=chosen.text if chosen and not accepted else None,
            policy=f"{policy.name}/{decision.rule}",
            calibration=policy.version,
            generation=chosen.generation if chosen else None,
            degraded=degraded,
        )

    def _status(self, accepted: bool) -> Status:
        if accepted:
            return "answered"
        broken = all(result.outcome in ("failed", "timeout") for result in self.results)
        return "failed" if self.results and broken else "abstained"

    def _path(self, decision: Decision) -> list[Step]:
        return [
            Step(
                result.layer,
                result.outcome,
                _rounded(result.confidence),
                result.latency_ms,
                decision.reason if result is decision.result and decision.action == "accept" else result.reason,
            )
            for result in self.results
        ]


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 4)
