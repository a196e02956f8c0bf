"""A query's life as one stream of events: ask layers in the order the policy says, then answer.

`Cascade.run` is the only place where layers meet. It knows nothing of Ray, Redis or HTTP, and
nothing of who listens: the reply, the blackboard and the feed all read this stream. The last
event carries the Answer. Closing the stream cancels the layer that is at work.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from kitbash_ray.errors import LayerError, LayerTimeout, LayerUnavailable
from kitbash_ray.policy import Decision, Policy, Situation
from kitbash_ray.types import (
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


class Cascade:
    """Layers, cheapest first, under one policy. Holds no state of any query."""

    def __init__(
        self,
        layers: Sequence[Layer],
        policy: Policy,
        *,
        timeouts_s: Mapping[str, float],
        max_error: float = 0.05,
    ) -> None:
        self.layers = {layer.name: layer for layer in layers}
        # Asked once here: a runtime check of a protocol costs more than a lookup in layer 0.
        self._streaming = {layer.name: layer for layer in layers if isinstance(layer, StreamingLayer)}
        self._policy = policy
        self._timeouts = timeouts_s
        self._max_error = max_error

    async def run(self, query: Query) -> AsyncGenerator[Event, None]:
        """The events of `query`, ending with `query.finished`."""
        run = _Run(query)
        yield run.event("query.received", query=query)
        while True:
            decision = self._policy.decide(self._situation(run))
            if decision.action != "ask":
                yield run.event("query.finished", answer=run.answer(decision, self._policy.name))
                return
            for name in decision.layers:
                yield run.event("layer.started", layer=name, query=query, reason=f"{decision.rule}: {decision.reason}")
            async with aclosing(self._ask(run, decision.layers)) as events:
                async for event in events:
                    yield event

    def _situation(self, run: _Run) -> Situation:
        asked = {result.layer for result in run.results}
        budget = self._max_error if run.query.max_error is None else run.query.max_error
        return Situation(
            results=tuple(run.results),
            waiting=tuple(name for name in self.layers if name not in asked),
            max_error=budget,
            strict=run.query.max_error is not None,
            seconds_left=run.seconds_left(),
        )

    async def _ask(self, run: _Run, names: tuple[str, ...]) -> AsyncGenerator[Event, None]:
        if len(names) > 1:
            results = await asyncio.gather(*(self._answer(run, self.layers[name]) for name in names))
            for result in results:
                yield run.take(result.layer, result)
        elif names[0] in self._streaming:
            async with aclosing(self._stream(run, self._streaming[names[0]])) as items:
                async for item in items:
                    yield run.take(names[0], item)
        else:
            yield run.take(names[0], await self._answer(run, self.layers[names[0]]))

    async def _answer(self, run: _Run, layer: Layer) -> LayerResult:
        """The layer's result; whatever goes wrong becomes a result too."""
        began = time.perf_counter()
        try:
            async with timeout(self._seconds(run, layer)):
                result = _signed(layer, await layer.answer(run.query, tuple(run.results)))
        except Exception as error:  # a layer's fault must not cost the question the next layer
            result = self._failure(run, layer, error)
        return _timed(result, began)

    async def _stream(self, run: _Run, layer: StreamingLayer) -> AsyncGenerator[str | LayerResult, None]:
        """Pieces of the answer, then the result."""
        began = time.perf_counter()
        source = layer.stream(run.query, tuple(run.results))
        try:
            async with aclosing(_with_timeout(source, self._seconds(run, layer))) as items:
                async for item in items:
                    if not isinstance(item, str):
                        yield _timed(_signed(layer, item), began)
                        return
                    yield item
            raise LayerError("the layer ended without a result")
        except Exception as error:  # as above
            yield _timed(self._failure(run, layer, error), began)

    def _failure(self, run: _Run, layer: Layer | StreamingLayer, error: Exception) -> LayerResult:
        if isinstance(error, TimeoutError | asyncio.TimeoutError | LayerTimeout):
            reason = f"no answer within {self._seconds(run, layer) * 1000:.0f} ms"
            return LayerResult(layer.name, "timeout", reason=reason)
        kind = "" if isinstance(error, LayerUnavailable) else f"{type(error).__name__}: "
        return LayerResult(layer.name, "failed", reason=f"{kind}{error}".strip()[:300])

    def _seconds(self, run: _Run, layer: Layer | StreamingLayer) -> float:
        own = self._timeouts.get(layer.name, 60.0)
        left = run.query.deadline_s
        return own if left is None else max(0.0, min(own, left - (time.time() - run.query.asked_at)))


class _Run:
    """What has happened to one query so far."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.results: list[LayerResult] = []
        self._began = time.perf_counter()
        self._seq = 0

    def event(self, kind: EventKind, **fields: Any) -> Event:
        event = Event(self.query.id, self._seq, time.time(), kind, **fields)
        self._seq += 1
        return event

    def take(self, layer: str, item: str | LayerResult) -> Event:
        if isinstance(item, str):
            return self.event("layer.delta", layer=layer, text=item)
        self.results.append(item)
        return self.event("layer.finished", layer=layer, result=item)

    def seconds_left(self) -> float | None:
        if self.query.deadline_s is None:
            return None
        return self.query.deadline_s - (time.time() - self.query.asked_at)

    def answer(self, decision: Decision, policy: str) -> Answer:
        chosen = decision.result
        accepted = decision.action == "accept" and chosen is not None
        return Answer(
            query_id=self.query.id,
            query=self.query.text,
            status=self._status(accepted),
            answer=chosen.text if accepted and chosen else None,
            layer=chosen.layer if accepted and chosen else None,
            confidence=_rounded(chosen.confidence) if chosen else None,
            sources=chosen.sources if chosen else (),
            path=tuple(self._path(decision)),
            latency_ms=round((time.perf_counter() - self._began) * 1000, 3),
            reason=decision.reason,
            candidate=chosen.text if chosen and not accepted else None,
            policy=f"{policy}/{decision.rule}",
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


async def _with_timeout(source: AsyncIterator[Any], seconds: float) -> AsyncGenerator[Any, None]:
    """Items of `source`, whose time together is `seconds`. Raises TimeoutError after that.

    A timeout must not stay open across a yield, so each step has one of its own.
    """
    end = time.perf_counter() + seconds
    try:
        while True:
            async with timeout(max(0.0, end - time.perf_counter())):
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close:
            await close()


def _signed(layer: Layer | StreamingLayer, result: LayerResult) -> LayerResult:
    """`result`, which has to be one and of the layer that was asked: the policy counts by name."""
    if not isinstance(result, LayerResult) or result.layer != layer.name:
        raise LayerError(f"the layer gave {type(result).__name__} instead of its own result")
    return result


def _timed(result: LayerResult, began: float) -> LayerResult:
    return replace(result, latency_ms=round((time.perf_counter() - began) * 1000, 3))


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 4)
