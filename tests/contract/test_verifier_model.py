"""The shipped verifier under ONNX Runtime."""

from __future__ import annotations

import math

import pytest

from kitbash_ray.knowledge.evidence import Candidate
from kitbash_ray.knowledge.verifier import Verifier


def fact(text: str, *asks: str) -> Candidate:
    return Candidate(text, asks, text, 0.5, (0.5,) * (1 + len(asks)))


TUNGSTEN = fact("Tungsten melts at 3,422 °C, the highest melting point of all metals.", "melting point of tungsten")
DNA = fact("DNA stores the genetic information of a cell.")


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [("at what temperature does tungsten melt", TUNGSTEN, DNA), ("what does DNA store", DNA, TUNGSTEN)],
)
def test_the_fact_that_answers_gets_the_higher_odds(
    verifier: Verifier, question: str, right: Candidate, wrong: Candidate
) -> None:
    good, bad = verifier.log_odds(question, [right, wrong])
    assert good > bad


@pytest.mark.parametrize("near_miss", ["melting point of rhenium", "who discovered tungsten"])
def test_a_near_miss_gets_lower_odds_than_the_question_that_it_was_made_from(verifier: Verifier, near_miss: str) -> None:
    [right], [wrong] = (verifier.log_odds(question, [TUNGSTEN]) for question in ("melting point of tungsten", near_miss))
    assert right > wrong


def test_candidates_do_not_disturb_each_other(verifier: Verifier) -> None:
    together = verifier.log_odds("what does DNA store", [TUNGSTEN, DNA])
    alone = [verifier.log_odds("what does DNA store", [one])[0] for one in (TUNGSTEN, DNA)]
    assert together == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("question", ["x", "∀", "why " * 400])
def test_any_question_is_read(verifier: Verifier, question: str) -> None:
    assert all(map(math.isfinite, verifier.log_odds(question, [DNA, fact("word " * 500)])))


def test_no_candidates_get_no_odds(verifier: Verifier) -> None:
    assert verifier.log_odds("what is ATP", []) == []
