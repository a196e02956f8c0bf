"""A query's life: which events come in which order, whatever the layers do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest
from msgspec.structs import replace

from kitbash_ray.cascade import Cascade, as_stream
from kitbash_ray.errors import LayerError, LayerTimeout, LayerUnavailable
from kitbash_ray.policy import Calibrated, Decision, Situation
from kitbash_ray.testing import EchoLayer, FailingLayer, ScriptedLayer, ScriptedStreamingLayer, SlowLayer
from kitbash_ray.types import Answer, Event, Layer, LayerResult, Query, Source

QUERY = Query("What is ATP?", id="q_1")
SOURCE = Source("bio", "bio:atp", "ATP carries energy.", 0.9)
#: Long enough never to be reached by a test that passes.
LONG = 60.0


class Sure:
    """Accepts the first confidence of 0.9; abstains when nobody is left."""

    name = "sure"
    version: str | None = "fitted"

    def decide(self, seen: Situation) -> Decision:
        last = seen.results[-1] if seen.results else None
        if last and last.outcome == "answered" and (last.confidence or 0) >= 0.9:
            return Decision("accept", "good", "0.9 is enough", result=last)
        if seen.seconds_left is not None and seen.seconds_left <= 0:
            return Decision("abstain", "deadline", "too late", result=best(seen))
        if seen.waiting:
            return Decision("ask", "next", "not yet", layers=seen.waiting[:1])
        return Decision("abstain", "end", "nobody is left", result=best(seen))


class Together(Sure):
    """Asks everybody at once."""

    def decide(self, seen: Situation) -> Decision:
        if not seen.results:
            return Decision("ask", "all", "at once", layers=seen.waiting)
        return super().decide(replace(seen, waiting=()))


def best(seen: Situation) -> LayerResult | None:
    return max((r for r in seen.results if r.outcome == "answered"), key=lambda r: r.confidence or 0, default=None)


def said(layer: str, confidence: float | None, text: str = "text") -> LayerResult:
    return LayerResult(layer, "answered", text=text, confidence=confidence, sources=(SOURCE,), reason="because")


def cascade(*layers: Layer, timeout: float = LONG, policy: Sure | Calibrated | None = None) -> Cascade:
    return Cascade(layers, policy or Sure(), timeouts_s={layer.name: timeout for layer in layers})


def stream_of(made: Cascade, query: Query = QUERY) -> AsyncGenerator[Event, None]:
    return as_stream(lambda tell: made.run(query, tell))


async def events_of(made: Cascade, query: Query = QUERY, *, at_most: int = 100) -> list[Event]:
    found: list[Event] = []
    async with aclosing(stream_of(made, query)) as events:
        async for event in events:
            found.append(event)
            assert len(found) <= at_most, "the cascade does not come to an end"
    return found


async def answer_of(made: Cascade, query: Query = QUERY) -> Answer:
    answer = (await events_of(made, query))[-1].answer
    assert answer is not None
    return answer


def kinds(events: Sequence[Event]) -> list[str]:
    return [f"{event.kind} {event.layer}" if event.layer else event.kind for event in events]


async def test_the_events_of_an_escalation_come_in_order() -> None:
    events = await events_of(cascade(ScriptedLayer("grain", said("grain", 0.5)), ScriptedLayer("kobold", said("kobold", 0.95))))
    assert kinds(events) == [
        "query.received",
        "layer.started grain",
        "layer.finished grain",
        "layer.started kobold",
        "layer.finished kobold",
        "query.finished",
    ]
    assert [event.seq for event in events] == list(range(len(events)))
    assert {event.query_id for event in events} == {"q_1"}
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert events[0].query == QUERY


async def test_a_layer_that_is_sure_enough_is_the_last_that_is_asked() -> None:
    second = EchoLayer("kobold")
    await events_of(cascade(EchoLayer("grain"), second))
    assert second.asked == []


async def test_a_layer_is_told_what_those_before_it_said() -> None:
    second = ScriptedLayer("kobold", said("kobold", 1.0))
    events = await events_of(cascade(ScriptedLayer("grain", said("grain", 0.5)), second))
    ((query, so_far),) = second.asked
    assert query == QUERY
    assert so_far == (events[2].result,)


async def test_the_answer_has_every_field_of_the_accepted_result() -> None:
    low, high = ScriptedLayer("grain", said("grain", 0.5, "no")), ScriptedLayer("kobold", said("kobold", 0.987654, "yes"))
    answer = await answer_of(cascade(low, high))
    assert (answer.query_id, answer.query, answer.status) == ("q_1", "What is ATP?", "answered")
    assert (answer.answer, answer.layer, answer.confidence) == ("yes", "kobold", 0.9877)
    assert (answer.sources, answer.candidate, answer.recorded) == ((SOURCE,), None, False)
    assert (answer.reason, answer.policy) == ("0.9 is enough", "sure/good")
    assert [(step.layer, step.outcome, step.confidence, step.reason) for step in answer.path] == [
        ("grain", "answered", 0.5, "because"),
        ("kobold", "answered", 0.9877, "0.9 is enough"),
    ]
    assert answer.latency_ms >= sum(step.latency_ms for step in answer.path) > 0


async def test_an_abstention_shows_the_best_candidate_with_its_sources() -> None:
    answer = await answer_of(
        cascade(ScriptedLayer("grain", said("grain", 0.6, "maybe")), ScriptedLayer("kobold", said("kobold", 0.4)))
    )
    assert (answer.status, answer.answer, answer.layer) == ("abstained", None, None)
    assert (answer.candidate, answer.confidence, answer.sources) == ("maybe", 0.6, (SOURCE,))


async def test_when_every_layer_abstains_there_is_no_candidate() -> None:
    answer = await answer_of(cascade(ScriptedLayer("grain", LayerResult("grain", "abstained", reason="nothing near"))))
    assert (answer.status, answer.candidate, answer.confidence, answer.sources) == ("abstained", None, None, ())
    assert answer.path[0].reason == "nothing near"


async def test_no_layers_at_all_abstain() -> None:
    answer = await answer_of(cascade())
    assert (answer.status, answer.path) == ("abstained", ())


async def test_a_layer_over_its_timeout_is_in_the_path_and_the_next_one_answers() -> None:
    slow = SlowLayer("bitnet")
    made = Cascade([slow, EchoLayer("kobold")], Sure(), timeouts_s={"bitnet": 0.02, "kobold": LONG})
    answer = await answer_of(made)
    assert [(step.layer, step.outcome) for step in answer.path] == [("bitnet", "timeout"), ("kobold", "answered")]
    assert answer.path[0].reason == "no answer within 20 ms"
    assert slow.cancelled.is_set()


class StuckStream:
    """Shows one piece and then nothing any more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown, self.closed = asyncio.Event(), asyncio.Event()

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...]):
        try:
            yield "one"
            self.shown.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        raise NotImplementedError


async def test_a_stream_over_its_timeout_is_closed_and_the_next_layer_answers() -> None:
    stuck = StuckStream("bitnet")
    events = await events_of(Cascade([stuck, EchoLayer("kobold")], Sure(), timeouts_s={"bitnet": 0.02}))
    assert kinds(events)[1:5] == ["layer.started bitnet", "layer.delta bitnet", "layer.finished bitnet", "layer.started kobold"]
    assert events[3].result is not None
    assert events[3].result.outcome == "timeout"
    assert stuck.closed.is_set()


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (LayerError("the model is ill"), "failed", "LayerError: the model is ill"),
        (LayerUnavailable("the kobold actor is gone"), "failed", "the kobold actor is gone"),
        (ValueError("x" * 1000), "failed", f"ValueError: {'x' * 288}"),
        (KeyError("k"), "failed", "KeyError: 'k'"),
        (RuntimeError(), "failed", "RuntimeError:"),
        (LayerTimeout("late"), "timeout", "no answer within 60000 ms"),
    ],
)
@pytest.mark.parametrize("kind", [ScriptedLayer, ScriptedStreamingLayer])
async def test_a_layer_that_raises_costs_nobody_the_next_layer(
    kind: type[ScriptedLayer] | type[ScriptedStreamingLayer], error: Exception, outcome: str, reason: str
) -> None:
    answer = await answer_of(cascade(kind("bitnet", error), EchoLayer("kobold")))
    assert (answer.status, answer.layer) == ("answered", "kobold")
    assert (answer.path[0].outcome, answer.path[0].reason) == (outcome, reason)


async def test_a_layer_that_returns_nothing_has_failed() -> None:
    answer = await answer_of(cascade(ScriptedLayer("bitnet", None), EchoLayer("kobold")))  # type: ignore[arg-type]
    assert [step.outcome for step in answer.path] == ["failed", "answered"]


async def test_when_every_layer_fails_the_question_has_failed() -> None:
    answer = await answer_of(cascade(FailingLayer("grain"), SlowLayer("bitnet"), timeout=0.02))
    assert (answer.status, [step.outcome for step in answer.path]) == ("failed", ["failed", "timeout"])


async def test_one_layer_that_works_and_abstains_makes_an_abstention() -> None:
    made = cascade(FailingLayer("grain"), ScriptedLayer("kobold", LayerResult("kobold", "abstained")))
    assert (await answer_of(made)).status == "abstained"


async def test_pieces_of_a_streaming_layer_are_events_before_its_result() -> None:
    events = await events_of(cascade(ScriptedStreamingLayer("kobold", "AT", "P", said("kobold", 1.0, "ATP"))))
    deltas = [event.text for event in events if event.kind == "layer.delta"]
    assert deltas == ["AT", "P"]
    assert kinds(events)[1:5] == ["layer.started kobold", "layer.delta kobold", "layer.delta kobold", "layer.finished kobold"]
    assert events[-1].answer is not None
    assert events[-1].answer.answer == "ATP"


async def test_pieces_come_while_the_layer_still_works() -> None:
    stuck = StuckStream("kobold")
    async with aclosing(stream_of(cascade(stuck))) as events:
        async for event in events:
            if event.kind == "layer.delta":
                assert not stuck.closed.is_set()
                break
    assert stuck.closed.is_set()


@pytest.mark.parametrize("script", [(), ("a", "b")])
async def test_a_stream_that_ends_without_a_result_has_failed(script: tuple[str, ...]) -> None:
    answer = await answer_of(cascade(ScriptedStreamingLayer("bitnet", *script), EchoLayer("kobold")))
    assert [(step.layer, step.outcome) for step in answer.path] == [("bitnet", "failed"), ("kobold", "answered")]


async def test_a_result_under_another_name_counts_for_the_layer_that_was_asked() -> None:
    await events_of(cascade(ScriptedLayer("grain", said("other", 0.1)), EchoLayer("kobold")))


@pytest.mark.parametrize("layer", [SlowLayer("kobold"), StuckStream("kobold")], ids=["plain", "streaming"])
async def test_cancelling_the_consumer_cancels_the_layer_at_work(layer: SlowLayer | StuckStream) -> None:
    task = asyncio.create_task(events_of(cascade(layer)))
    await asyncio.wait_for((layer.started if isinstance(layer, SlowLayer) else layer.shown).wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (layer.cancelled if isinstance(layer, SlowLayer) else layer.closed).is_set()


async def test_closing_the_stream_closes_the_layers_stream() -> None:
    layer = ScriptedStreamingLayer("kobold", "a", "b", "c", said("kobold", 1.0))
    async with aclosing(stream_of(cascade(layer))) as events:
        async for event in events:
            if event.kind == "layer.delta":
                break
    assert layer.closed.is_set()


async def test_a_deadline_ends_a_layer_before_its_own_timeout() -> None:
    slow = SlowLayer("bitnet")
    next_one = EchoLayer("kobold")
    answer = await answer_of(cascade(slow, next_one), Query("?", deadline_s=0.05))
    assert (answer.path[0].outcome, answer.reason) == ("timeout", "too late")
    assert next_one.asked == []
    assert answer.policy == "sure/deadline"


async def test_a_question_whose_time_was_over_before_it_began_asks_nobody() -> None:
    layer = EchoLayer("grain")
    answer = await answer_of(cascade(layer), Query("?", deadline_s=1.0, asked_at=time.time() - 10))
    assert (answer.status, layer.asked) == ("abstained", [])


async def test_layers_asked_together_work_at_the_same_time() -> None:
    one, two = SlowLayer("bitnet", confidence=0.1), SlowLayer("cartridge")
    task = asyncio.create_task(events_of(cascade(one, two, policy=Together())))
    # Both have begun before either is done
    await asyncio.wait_for(asyncio.gather(one.started.wait(), two.started.wait()), 5)
    two.release.set()
    one.release.set()
    assert kinds(await task)[1:5] == [
        "layer.started bitnet",
        "layer.started cartridge",
        "layer.finished bitnet",
        "layer.finished cartridge",
    ]


async def test_of_layers_asked_together_one_may_fail_or_end_without_a_result() -> None:
    made = cascade(FailingLayer("grain"), ScriptedStreamingLayer("bitnet", "a"), EchoLayer("kobold"), policy=Together())
    answer = await answer_of(made)
    assert [step.outcome for step in answer.path] == ["failed", "failed", "answered"]


async def test_cancelling_cancels_every_layer_asked_together() -> None:
    one, two = SlowLayer("bitnet"), SlowLayer("cartridge")
    task = asyncio.create_task(events_of(cascade(one, two, policy=Together())))
    await asyncio.wait_for(asyncio.gather(one.started.wait(), two.started.wait()), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(asyncio.gather(one.cancelled.wait(), two.cancelled.wait()), 5)


@pytest.mark.parametrize(("budget", "strict"), [(None, False), (0.01, True)])
async def test_the_budget_of_a_question_goes_before_that_of_the_deployment(budget: float | None, strict: bool) -> None:
    seen: list[Situation] = []

    class Watching(Sure):
        def decide(self, situation: Situation) -> Decision:
            seen.append(situation)
            return super().decide(situation)

    made = Cascade([EchoLayer()], Watching(), timeouts_s={}, max_error=0.07)
    await events_of(made, Query("?", max_error=budget))
    assert {(situation.max_error, situation.strict) for situation in seen} == {(budget or 0.07, strict)}


async def test_questions_run_side_by_side_without_meeting() -> None:
    made = cascade(EchoLayer("kobold"))
    answers = await asyncio.gather(*(answer_of(made, Query(f"question {n}")) for n in range(50)))
    assert [answer.answer for answer in answers] == [f"question {n}" for n in range(50)]


async def test_an_answer_names_the_calibration_it_goes_by() -> None:
    answer = await answer_of(cascade(ScriptedLayer("a", said("a", 0.95))))
    assert (answer.policy, answer.calibration) == ("sure/good", "fitted")


async def test_a_result_says_how_far_it_agrees_with_each_earlier_answer() -> None:
    asked: list[tuple[str, str]] = []

    async def cosine(first: str, second: str) -> float:
        asked.append((first, second))
        return 0.65

    other = replace(said("b", 0.2, "words"), sources=(replace(SOURCE, fact_id="bio:other"),))
    layers = [
        ScriptedLayer("a", said("a", 0.1, "one thing")),
        ScriptedLayer("b", other),
        ScriptedLayer("off", LayerResult("off", "abstained")),
        ScriptedLayer("c", said("c", 0.3, "another thing")),
    ]
    made = Cascade(layers, Sure(), timeouts_s={}, cosine=cosine)
    results = {event.layer: event.result for event in await events_of(made) if event.result}
    agrees = {layer: dict(result.agrees) for layer, result in results.items() if result}
    assert agrees == {"a": {}, "b": {"a": 0.5}, "off": {}, "c": {"a": 1.0, "b": 0.5}}
    # answers that cite one fact are not compared by meaning
    assert asked == [("words", "one thing"), ("another thing", "words")]


async def test_without_a_model_of_meaning_only_cited_facts_agree() -> None:
    other = replace(said("b", 0.2), sources=(replace(SOURCE, fact_id="bio:other"),))
    made = cascade(ScriptedLayer("a", said("a", 0.1)), ScriptedLayer("b", other))
    assert [dict(event.result.agrees) for event in await events_of(made) if event.result] == [{}, {"a": 0.0}]
