"""What another policy would have made of a recorded question. Pure: events in, decisions out.

A policy sees only results, so what the layers said once is all it needs, until it asks a
layer that was not asked then: there the replay ends and says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from kitbash_ray.errors import ClientError
from kitbash_ray.policy import Decision, Policy, Situation
from kitbash_ray.types import LAYER_NUMBERS, Event, LayerResult


class Replay(Struct, frozen=True):
    """The decisions in order. `unknown` are layers that the last one asks and that were not asked then."""

    decisions: tuple[Decision, ...]
    unknown: tuple[str, ...] = ()


def recorded(events: Sequence[Event]) -> dict[str, LayerResult]:
    """What each layer said, in order."""
    return {event.result.layer: event.result for event in events if event.result}


def replay(events: Sequence[Event], policy: Policy, max_error: float) -> Replay:
    """Decide a recorded question anew. `max_error` is the deployment's; the question's own goes before it.

    Raises ClientError when the record does not begin with the question.
    """
    query = next((event.query for event in events if event.kind == "query.received"), None)
    if query is None:
        raise ClientError("The record of this question is not whole: its beginning is gone.")
    known = recorded(events)
    results: list[LayerResult] = []
    decisions: list[Decision] = []
    while True:
        asked = {result.layer for result in results}
        decision = policy.decide(
            Situation(
                results=tuple(results),
                waiting=tuple(name for name in LAYER_NUMBERS if name not in asked),
                max_error=max_error if query.max_error is None else query.max_error,
                strict=query.max_error is not None,
            )
        )
        decisions.append(decision)
        if decision.action != "ask":
            return Replay(tuple(decisions))
        if unknown := tuple(name for name in decision.layers if name not in known):
            return Replay(tuple(decisions), unknown)
        results += [known[name] for name in decision.layers]
