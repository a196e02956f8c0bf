"""When a layer is asked and when not, by a clock that the tests turn."""

from __future__ import annotations

import pytest

from kitbash_ray.breaker import LONGEST_DELAY_S, SHORTEST_DELAY_S, Breaker
from kitbash_ray.cascade import Cascade
from kitbash_ray.errors import LayerBusy, LayerError, LayerUnavailable
from kitbash_ray.policy import Fixed
from kitbash_ray.testing import EchoLayer, FailingLayer, SlowLayer
from kitbash_ray.types import Answer, Layer, Query


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def silent(breaker: Breaker, reason: str = "silent", *, took_s: float = 0.0) -> None:
    breaker.failed(reason, breaker.heard, took_s)


def test_a_breaker_begins_closed_and_admits_everybody(breaker: Breaker) -> None:
    assert breaker.state == "closed"
    assert all(breaker.admits() for _ in range(3))


def test_one_silence_opens_it_and_nobody_is_admitted_until_the_delay_is_over(breaker: Breaker, clock: Clock) -> None:
    assert breaker.admits()
    silent(breaker, "no answer within 8000 ms")
    assert (breaker.state, breaker.reason) == ("open", "no answer within 8000 ms")
    clock.now += SHORTEST_DELAY_S - 0.001
    assert not breaker.admits()


def test_after_the_delay_one_question_is_the_trial_and_the_others_are_not_admitted(breaker: Breaker, clock: Clock) -> None:
    silent(breaker)
    clock.now += SHORTEST_DELAY_S
    assert breaker.state == "half-open"
    assert breaker.admits()
    assert not breaker.admits()


def test_a_trial_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    silent(breaker)
    clock.now += SHORTEST_DELAY_S
    breaker.admits()
    breaker.succeeded()
    assert (breaker.state, breaker.reason) == ("closed", None)


@pytest.mark.parametrize(("took_s", "delay_s"), [(0.001, SHORTEST_DELAY_S), (2.0, 2.0), (60.0, LONGEST_DELAY_S)])
def test_the_next_trial_is_as_far_away_as_the_last_one_took_within_limits(
    breaker: Breaker, clock: Clock, took_s: float, delay_s: float
) -> None:
    for _ in range(3):
        silent(breaker, took_s=took_s)
        clock.now += delay_s - 0.001
        assert not breaker.admits()
        clock.now += 0.002
        assert breaker.admits()


def test_questions_admitted_before_it_opened_do_not_make_the_delay_longer(breaker: Breaker, clock: Clock) -> None:
    for _ in range(5):
        breaker.admits()
    for _ in range(5):
        silent(breaker)
    clock.now += SHORTEST_DELAY_S
    assert breaker.admits()


def test_a_trial_that_nobody_waited_for_makes_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    silent(breaker)
    clock.now += SHORTEST_DELAY_S
    assert breaker.admits()
    breaker.released()
    assert breaker.admits()


def test_a_layer_that_answers_others_meanwhile_is_late_and_not_silent(breaker: Breaker) -> None:
    when_asked = breaker.heard
    breaker.succeeded()
    breaker.failed("no answer within 2000 ms", when_asked, 2.0)
    assert breaker.state == "closed"
    silent(breaker, "no answer within 2000 ms")
    assert breaker.state == "open"


def test_an_answer_that_comes_late_closes_it(breaker: Breaker) -> None:
    silent(breaker)
    breaker.succeeded()
    assert breaker.admits()


def cascade(first: Layer, clock: Clock, *, timeout: float = 60.0) -> Cascade:
    """`first`, and then a layer that answers everything."""
    made = Cascade([first, EchoLayer("kobold")], Fixed(), timeouts_s={first.name: timeout})
    made.breakers = {name: Breaker(clock) for name in made.breakers}
    return made


async def answer_of(made: Cascade, query: Query | None = None) -> Answer:
    answer = (await made.run(query or Query("What is ATP?"), lambda _: None)).answer
    assert answer is not None
    return answer


async def test_a_layer_that_was_not_there_is_not_asked_again_at_once_and_the_answer_says_so(clock: Clock) -> None:
    gone = FailingLayer("bitnet", LayerUnavailable("the bitnet actor is gone"))
    made = cascade(gone, clock)
    first, second = await answer_of(made), await answer_of(made)
    assert len(gone.asked) == 1
    assert first.degraded == second.degraded == ("bitnet",)
    assert second.path[0].reason == "not asked: the bitnet actor is gone"
    assert (second.status, second.layer) == ("answered", "kobold")


async def test_a_slow_layer_costs_one_timeout_and_is_used_again_when_a_trial_succeeds(clock: Clock) -> None:
    slow = SlowLayer("bitnet")
    made = cascade(slow, clock, timeout=0.05)
    assert [(await answer_of(made)).path[0].outcome for _ in range(3)] == ["timeout", "failed", "failed"]
    slow.release.set()
    clock.now += SHORTEST_DELAY_S
    answer = await answer_of(made)
    assert (answer.layer, answer.path[0].outcome, answer.degraded) == ("bitnet", "answered", ())


async def test_a_layer_that_is_known_to_be_back_needs_no_trial(clock: Clock) -> None:
    gone = FailingLayer("bitnet", LayerUnavailable("the bitnet actor is gone"))
    made = cascade(gone, clock)
    await answer_of(made)
    assert made.degraded == ("bitnet",)
    made.is_back("bitnet")
    assert made.degraded == ()
    await answer_of(made)
    assert len(gone.asked) == 2


@pytest.mark.parametrize("error", [LayerError("a fault"), ValueError("a bug"), LayerBusy("16 questions wait")])
async def test_a_layer_that_says_something_is_asked_again(error: Exception, clock: Clock) -> None:
    layer = FailingLayer("bitnet", error)
    made = cascade(layer, clock)
    assert [(await answer_of(made)).degraded for _ in range(3)] == [()] * 3
    assert len(layer.asked) == 3


async def test_a_deadline_that_cuts_a_layer_short_says_nothing_about_the_layer(clock: Clock) -> None:
    made = cascade(SlowLayer("bitnet"), clock)
    await answer_of(made, Query("x", deadline_s=0.05))
    assert made.degraded == ()


async def test_layer_0_is_always_asked(clock: Clock) -> None:
    made = cascade(FailingLayer("grain", LayerUnavailable("no")), clock)
    assert [(await answer_of(made)).path[0].reason for _ in range(2)] == ["no", "no"]
