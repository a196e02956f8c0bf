"""Counting right and wrong answers, and how true their confidences are."""

from __future__ import annotations

import numpy as np
import pytest

from kitbash_ray.evaluation import area_under, calibration_error, columns, judge, reliability, risk_coverage, score
from kitbash_ray.questions import Question
from kitbash_ray.types import Answer, Source, Status

ATP = Source("bio", "bio:atp", "ATP carries energy.", 0.9)
KNOWN, UNKNOWN = Question("What is ATP?", ("bio:atp",)), Question("Who won?")


def answer(status: Status, text: str = ATP.text, confidence: float | None = 0.9) -> Answer:
    said = {"answer": text} if status == "answered" else {"candidate": text}
    return Answer("q_1", "q", status, sources=(ATP,), confidence=confidence, **said)


def test_every_outcome_is_counted_once() -> None:
    found = score(
        [
            judge(KNOWN, answer("answered")),
            judge(KNOWN, answer("answered", "Something else.")),
            judge(UNKNOWN, answer("answered")),
            judge(UNKNOWN, answer("abstained")),
            judge(KNOWN, answer("abstained")),
            judge(KNOWN, answer("failed")),
        ]
    )
    assert (found.questions, found.answerable, found.right, found.wrong) == (6, 4, 1, 2)
    assert (found.abstained, found.abstained_rightly, found.failed) == (2, 1, 1)
    assert (found.precision, found.coverage) == (pytest.approx(1 / 3), pytest.approx(1 / 4))


def test_of_no_questions_nothing_is_claimed() -> None:
    assert (score([]).precision, score([]).coverage) == (None, None)


def test_a_guess_that_was_not_given_counts_for_the_curve() -> None:
    confidences, right = columns(
        [judge(KNOWN, answer("abstained", confidence=0.4)), judge(UNKNOWN, answer("abstained", confidence=None))]
    )
    assert confidences.tolist() == [0.4, 0.0]
    assert right.tolist() == [True, False]


@pytest.mark.parametrize(
    ("confidences", "right", "error"),
    [
        ([1.0, 1.0, 0.0, 0.0], [True, True, False, False], 0.0),
        ([1.0, 1.0, 0.0, 0.0], [False, False, True, True], 1.0),
        ([0.75] * 4, [True, True, True, False], 0.0),
        ([0.95] * 4, [True, True, False, False], 0.45),
    ],
)
def test_the_calibration_error_is_what_confidence_and_accuracy_lie_apart(
    confidences: list[float], right: list[bool], error: float
) -> None:
    assert calibration_error(np.array(confidences), np.array(right)) == pytest.approx(error)


def test_a_reliability_diagram_has_a_point_for_each_range_that_occurs() -> None:
    points = reliability(np.array([0.12, 0.18, 0.9]), np.array([True, False, True]))
    assert points == [pytest.approx((0.15, 0.5, 2 / 3)), pytest.approx((0.9, 1.0, 1 / 3))]


def test_the_risk_rises_as_less_sure_answers_are_let_in() -> None:
    coverage, risk = risk_coverage(np.array([0.2, 0.9, 0.5]), np.array([False, True, True]))
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3])
    assert area_under(risk) == pytest.approx(1 / 9)
