"""What a front-door replica counts, for Prometheus, on the metrics endpoint of Ray.

`hear` takes every event that the orchestrator tells. A layer-0 question takes microseconds, and
telling Ray one number costs two: so counts are added up here and handed on by `export`, once a
second, and only times and confidences go to Ray one by one, with one tag each.

Ray puts `ray_` before every name, and the endpoint shows a number up to ten seconds later. Not
here: looking at the numbers (monitoring/).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

from actors.orchestrator import Orchestrator
from kitbash_ray.errors import StoreError
from kitbash_ray.queue import Queue
from kitbash_ray.types import Answer, Event, LayerResult

#: Upper bounds of the buckets, in seconds: from a lookup in layer 0 to layer 4's whole time.
SECONDS = [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
#: The same for confidences: finer where error budgets are.
CONFIDENCES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0]
BREAKER_STATES = ("closed", "open", "half-open")
#: The layer of a question that none answered.
NOBODY = "none"
EXPORT_S = 1.0


class Tally:
    """A counter of Ray's that is cheap to count: Ray hears of it in `export`."""

    def __init__(self, name: str, description: str, *tags: str) -> None:
        self._counter = Counter(name, description, tags)
        self._tags = tags
        self._new: defaultdict[tuple[str, ...], int] = defaultdict(int)

    def count(self, *values: str) -> None:
        """One more; `values` are those of the tags, in their order."""
        self._new[values] += 1

    def export(self) -> None:
        new, self._new = self._new, defaultdict(int)
        for values, count in new.items():
            self._counter.inc(count, dict(zip(self._tags, values, strict=True)))


class Metrics:
    """The metrics of one front-door replica. Belongs to one event loop."""

    def __init__(self) -> None:
        self._queries = Tally("kitbash_queries_total", "Questions that ended, by the layer that answered", "status", "layer")
        self._results = Tally("kitbash_layer_results_total", "What layers said", "layer", "outcome")
        self._judged = Tally("kitbash_feedback_total", "Answers that somebody judged", "layer", "verdict")
        self._query_s = Histogram(
            "kitbash_query_seconds", "Time of a whole question, by the layer that answered", SECONDS, ("layer",)
        )
        self._layer_s = Histogram("kitbash_layer_seconds", "Time of a layer", SECONDS, ("layer",))
        self._confidence = Histogram("kitbash_confidence", "Confidence of accepted answers", CONFIDENCES, ("layer",))
        self._in_flight = Gauge("kitbash_queries_in_flight", "Questions being worked on")
        self._recorder = Gauge("kitbash_recorder_healthy", "1 if the last events reached Redis, 0 if not")
        self._spool = Gauge("kitbash_spool_bytes", "Events that wait in a file for Redis")
        self._breaker = Gauge("kitbash_breaker_state", "1 for the state that a layer's breaker is in", ("layer", "state"))
        self._queue = Gauge("kitbash_queue_queries", "Asynchronous questions by state", ("state",))

    def hear(self, event: Event) -> None:
        """Count what `event` says. Costs a layer-0 question some ten microseconds in all."""
        if event.kind == "layer.finished" and event.result:
            self._layer(event.result)
        elif event.kind == "query.finished" and event.answer:
            self._answer(event.answer)
        elif event.kind == "query.judged":
            self._judged.count(event.layer or NOBODY, "right" if event.right else "wrong")

    def _layer(self, result: LayerResult) -> None:
        self._results.count(result.layer, result.outcome)
        self._layer_s.observe(result.latency_ms / 1000, _by(result.layer))

    def _answer(self, answer: Answer) -> None:
        layer = answer.layer or NOBODY
        self._queries.count(answer.status, layer)
        if answer.status != "cancelled":  # nobody knows how long it would have taken
            self._query_s.observe(answer.latency_ms / 1000, _by(layer))
        if answer.status == "answered" and answer.confidence is not None:
            self._confidence.observe(answer.confidence, _by(layer))

    def replica(self, in_flight: int, recorder_healthy: bool, spool_bytes: int) -> None:
        """How this replica is now."""
        self._in_flight.set(in_flight)
        self._recorder.set(int(recorder_healthy))
        self._spool.set(spool_bytes)

    def breaker(self, layer: str, state: str) -> None:
        """The state that a layer's breaker is in now, one of BREAKER_STATES."""
        for each in BREAKER_STATES:
            self._breaker.set(int(each == state), {"layer": layer, "state": each})

    def queue(self, waiting: int, running: int, dead: int) -> None:
        """Asynchronous questions of all replicas: waiting, worked on, given up."""
        for state, count in (("waiting", waiting), ("running", running), ("dead", dead)):
            self._queue.set(count, {"state": state})

    def export(self) -> None:
        """Hand on to Ray what was counted since the last time."""
        for tally in (self._queries, self._results, self._judged):
            tally.export()


async def keep_exporting(metrics: Metrics, orchestrator: Orchestrator, queue: Queue) -> None:
    """Once a second, tell Ray what came and how the replica, its breakers and the queue are. Never returns."""
    while True:
        recorder = orchestrator.recorder
        metrics.replica(orchestrator.in_flight, recorder.healthy, recorder.spooled_bytes())
        for layer, breaker in orchestrator.cascade.breakers.items():
            metrics.breaker(layer, breaker.state)
        metrics.export()
        with suppress(StoreError):  # the recorder's gauge says that Redis is away
            counts = await queue.counts()
            metrics.queue(counts.waiting, counts.running, counts.dead)
        await asyncio.sleep(EXPORT_S)


@cache
def _by(layer: str) -> dict[str, str]:
    return {"layer": layer}
