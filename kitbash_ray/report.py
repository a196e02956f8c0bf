"""What live traffic looked like, layer by layer: a fold over the feed's events. Pure.

Not here: reading the feed (feed.py, client.py) and showing the report (cli/report.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from msgspec import Struct

from kitbash_ray.bounds import lower_bound, upper_bound
from kitbash_ray.types import Answer, Event, LayerResult


class LayerReport(Struct, frozen=True):
    """One layer. Rates are shares of `asked`, `hit_rate` of all finished queries; latencies in ms.

    Confidences are means, None without any: of the answers it gave, and of those that went on.
    """

    layer: str
    asked: int
    returned: int
    abstained: int
    failed: int
    hit_rate: float
    timeout_rate: float
    confidence_returned: float | None
    confidence_escalated: float | None
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Report(Struct, frozen=True):
    """All queries of the events. `judged` answers have feedback, `wrong` of them bad; the bounds hold with 95 %."""

    queries: int
    answered: int
    abstained: int
    failed: int
    cancelled: int
    judged: int
    wrong: int
    error_at_least: float
    error_at_most: float
    layers: tuple[LayerReport, ...]


def report(events: Iterable[Event]) -> Report:
    """The report of whole queries among `events`: those whose end is there."""
    answers: dict[str, Answer] = {}
    results: dict[str, list[LayerResult]] = defaultdict(list)
    verdicts: dict[str, bool] = {}
    for event in events:
        if event.kind == "query.judged" and event.right is not None:
            verdicts[event.query_id] = event.right
        elif event.answer:
            answers[event.query_id] = event.answer
        elif event.result:
            results[event.query_id].append(event.result)
    wrong = sum(not right for right in verdicts.values())
    counts = {status: sum(answer.status == status for answer in answers.values()) for status in STATUSES}
    return Report(
        queries=len(answers),
        **counts,
        judged=len(verdicts),
        wrong=wrong,
        error_at_least=lower_bound(wrong, len(verdicts)),
        error_at_most=upper_bound(wrong, len(verdicts)),
        layers=_layers(answers, results),
    )


STATUSES = ("answered", "abstained", "failed", "cancelled")


def _layers(answers: dict[str, Answer], results: dict[str, list[LayerResult]]) -> tuple[LayerReport, ...]:
    said: dict[str, list[tuple[LayerResult, bool]]] = {}
    for query_id, answer in answers.items():
        for result in results[query_id]:
            said.setdefault(result.layer, []).append((result, answer.status == "answered" and answer.layer == result.layer))
    return tuple(_layer(layer, items, len(answers)) for layer, items in said.items())


def _layer(layer: str, items: list[tuple[LayerResult, bool]], queries: int) -> LayerReport:
    latencies = [result.latency_ms for result, _ in items]
    outcomes = [result.outcome for result, _ in items]
    returned = sum(was for _, was in items)
    p50, p95, p99 = (round(float(np.percentile(latencies, share)), 3) for share in (50, 95, 99))
    return LayerReport(
        layer,
        asked=len(items),
        returned=returned,
        abstained=outcomes.count("abstained"),
        failed=outcomes.count("failed"),
        hit_rate=returned / queries,
        timeout_rate=outcomes.count("timeout") / len(items),
        confidence_returned=_mean(result.confidence for result, was in items if was),
        confidence_escalated=_mean(result.confidence for result, was in items if not was),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )


def _mean(confidences: Iterable[float | None]) -> float | None:
    stated = [value for value in confidences if value is not None]
    return round(sum(stated) / len(stated), 4) if stated else None
