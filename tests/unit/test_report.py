"""The report on live traffic, and replaying a question under another policy."""

from __future__ import annotations

import pytest

from kitbash_ray.calibration import load_calibration
from kitbash_ray.errors import ClientError
from kitbash_ray.policy import Calibrated, Fixed
from kitbash_ray.replay import replay
from kitbash_ray.report import report
from kitbash_ray.types import Answer, Event, LayerResult, Outcome, Query


def said(layer: str, confidence: float | None = None, outcome: Outcome = "answered", ms: float = 1.0) -> LayerResult:
    return LayerResult(layer, outcome, text="text", confidence=confidence, latency_ms=ms)


def life(query_id: str, *results: LayerResult, answered_by: str | None, query: Query | None = None) -> list[Event]:
    events = [Event(query_id, 0, 0.0, "query.received", query=query or Query("q", id=query_id))]
    events += [Event(query_id, n, 0.0, "layer.finished", layer=r.layer, result=r) for n, r in enumerate(results, 1)]
    answer = Answer(query_id, "q", "answered" if answered_by else "abstained", layer=answered_by)
    return [*events, Event(query_id, 99, 0.0, "query.finished", answer=answer)]


def test_a_report_counts_what_each_layer_did() -> None:
    found = report(
        [
            *life("q_1", said("grain", 0.9, ms=1.0), answered_by="grain"),
            *life("q_2", said("grain", 0.5, ms=3.0), said("cartridge", 0.8), answered_by="cartridge"),
            *life("q_3", said("grain", outcome="abstained", ms=2.0), said("cartridge", outcome="timeout"), answered_by=None),
            *life("q_4", said("grain", 0.7, ms=2.0), answered_by="grain"),
        ]
    )
    assert (found.queries, found.answered, found.abstained, found.failed) == (4, 3, 1, 0)
    grain, cartridge = found.layers
    assert (grain.layer, grain.asked, grain.returned, grain.abstained, grain.hit_rate) == ("grain", 4, 2, 1, 0.5)
    assert (grain.confidence_returned, grain.confidence_escalated, grain.p50_ms) == (0.8, 0.5, 2.0)
    assert (cartridge.asked, cartridge.hit_rate, cartridge.timeout_rate) == (2, 0.25, 0.5)


def test_questions_without_an_end_are_not_in_a_report() -> None:
    assert report(life("q_1", said("grain", 0.9), answered_by="grain")[:-1]).queries == 0


def test_feedback_bounds_the_error_and_the_last_verdict_on_an_answer_counts() -> None:
    judged = [
        Event("q_1", 100, 0.0, "query.judged", right=False),
        Event("q_1", 101, 0.0, "query.judged", right=True),
        Event("q_2", 100, 0.0, "query.judged", right=False),
    ]
    found = report(judged)
    assert (found.judged, found.wrong, found.queries) == (2, 1, 0)
    assert found.error_at_least < 0.5 < found.error_at_most


def test_a_replay_with_the_same_policy_decides_as_it_did() -> None:
    policy = Calibrated(load_calibration())
    events = life("q_1", said("grain", 0.9999), answered_by="grain")
    found = replay(events, policy, 0.05)
    assert [decision.action for decision in found.decisions] == ["ask", "accept"]
    assert found.unknown == ()


def test_a_replay_ends_where_another_policy_asks_a_layer_that_was_not_asked() -> None:
    events = life("q_1", said("grain", 0.84), answered_by="grain")
    found = replay(events, Fixed(), 0.05)
    assert found.unknown == ("bitnet",)
    assert found.decisions[-1].action == "ask"


def test_a_replay_goes_on_with_what_later_layers_said() -> None:
    events = life("q_1", said("grain", 0.3), said("bitnet", 0.9), said("cartridge", 0.95), answered_by="cartridge")
    found = replay(events, Fixed(), 0.05)
    assert [(d.action, d.rule) for d in found.decisions][-1] == ("accept", "fixed-threshold")
    assert found.decisions[-1].result
    assert found.decisions[-1].result.layer == "bitnet"


def test_the_questions_own_budget_goes_before_the_deployments() -> None:
    events = life("q_1", said("grain", 0.9), answered_by="grain", query=Query("q", id="q_1", max_error=0.0001))
    assert replay(events, Calibrated(load_calibration()), 0.5).decisions[-1].action == "ask"


def test_a_record_without_its_beginning_is_refused() -> None:
    with pytest.raises(ClientError, match="beginning is gone"):
        replay(life("q_1", said("grain", 0.9), answered_by="grain")[1:], Fixed(), 0.05)
