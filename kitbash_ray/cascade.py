"""A query's life as one stream of events: ask layers in the order the policy says, then answer.

`Cascade.run` is the only place where layers meet. It knows nothing of Ray, Redis or HTTP, and
nothing of who listens: the reply, the blackboard and the feed all read this stream. The last
event carries the Answer. Closing the stream cancels the layer that is at work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import anyio

from kitbash_ray.errors import LayerTimeout, LayerUnavailable
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
                yield run.event("policy.decided", reason=f"{decision.rule}: {decision.reason}")
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
        if len(names) == 1:
            async with aclosing(self._ask_one(run, self.layers[names[0]])) as items:
                async for item in items:
                    yield run.take(names[0], item)
            return
        results = await asyncio.gather(*(self._last(run, self.layers[name]) for name in names))
        for name, result in zip(names, results, strict=True):
            yield run.take(name, result)

    async def _last(self, run: _Run, layer: Layer) -> LayerResult:
        async for item in self._ask_one(run, layer):
            if isinstance(item, LayerResult):
                return item
        return _failure(layer.name, RuntimeError("the layer ended without a result"))

    async def _ask_one(self, run: _Run, layer: Layer) -> AsyncGenerator[str | LayerResult, None]:
        """Deltas of a streaming layer, then its result; whatever goes wrong becomes a result too."""
        began = time.perf_counter()
        so_far = tuple(run.results)
        try:
            if isinstance(layer, StreamingLayer):
                async with aclosing(_with_timeout(layer.stream(run.query, so_far), self._seconds(run, layer))) as items:
                    async for item in items:
                        yield _timed(item, began) if isinstance(item, LayerResult) else item
            else:
                with anyio.fail_after(self._seconds(run, layer)):
                    result = await layer.answer(run.query, so_far)
                yield _timed(result, began)
        except (TimeoutError, LayerTimeout):
            reason = f"no answer within {self._seconds(run, layer) * 1000:.0f} ms"
            yield _timed(LayerResult(layer.name, "timeout", reason=reason), began)
        except Exception as error:  # a layer's fault must not cost the question the next layer
            yield _timed(_failure(layer.name, error), began)

    def _seconds(self, run: _Run, layer: Layer) -> float:
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

    A cancel scope must not stay open across a yield, so each step has one of its own.
    """
    end = time.perf_counter() + seconds
    try:
        while True:
            with anyio.fail_after(max(0.0, end - time.perf_counter())):
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close:
            await close()


def _timed(result: LayerResult, began: float) -> LayerResult:
    return replace(result, latency_ms=round((time.perf_counter() - began) * 1000, 3))


def _failure(layer: str, error: Exception) -> LayerResult:
    kind = "" if isinstance(error, LayerUnavailable) else f"{type(error).__name__}: "
    return LayerResult(layer, "failed", reason=f"{kind}{error}".strip()[:300])


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 4)
