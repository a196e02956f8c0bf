"""Layers that share one error budget: none of their answers is counted twice, and together they keep it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from kitbash_ray.shared_budget import SHARES, shared_thresholds

Drawn = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


def drawn(questions: int, random: np.random.Generator) -> Drawn:
    """Confidences of both layers that are true, of which the second knows more; each is silent at times."""
    likely = random.beta(6, 1, (len(SHARES), questions)) ** np.array([[2.0], [1.0]])
    right = random.random(likely.shape) < likely
    return np.where(random.random(likely.shape) < 0.1, -1.0, likely), right


def answered(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], values: list[float]) -> list[tuple[int, int]]:
    """Counted one question after the other: answers, and wrong ones, by each layer and those before it."""
    counts = np.zeros((len(values), 2), int)
    for sure, good in zip(confidences.T, right.T, strict=True):
        first = next((layer for layer, value in enumerate(values) if sure[layer] >= value), None)
        if first is not None:
            counts[first:] += (1, int(not good[first]))
    return [(int(count), int(wrong)) for count, wrong in counts]


def test_a_question_counts_for_the_first_layer_that_answers_it() -> None:
    confidences, right = drawn(2000, np.random.default_rng(0))
    found = shared_thresholds(confidences, right, 0.1)
    counted = answered(confidences, right, [threshold.value - 1e-9 for threshold in found])
    assert [threshold.accepted for threshold in found] == [count for count, _ in counted]
    assert [threshold.error for threshold in found] == pytest.approx([wrong / count for count, wrong in counted])


def test_each_layer_may_have_its_share_of_the_doubt_and_together_they_keep_the_budget() -> None:
    found = shared_thresholds(*drawn(2000, np.random.default_rng(0)), 0.1)
    allowed = [(1 - threshold.value) / share for threshold, share in zip(found, SHARES.values(), strict=True)]
    assert allowed == pytest.approx([allowed[0]] * len(SHARES))
    assert found[-1].bound <= 0.1


def test_a_larger_budget_asks_no_layer_for_more_confidence() -> None:
    confidences, right = drawn(2000, np.random.default_rng(0))
    values = np.array([[t.value for t in shared_thresholds(confidences, right, budget)] for budget in (0.05, 0.1, 0.2, 0.3)])
    assert (np.diff(values, axis=0) <= 0).all()
    assert (values[-1] < 1).all()


@pytest.mark.parametrize("questions", [0, 1, 30])
def test_with_too_few_questions_nothing_is_proven(questions: int) -> None:
    right = np.ones((len(SHARES), questions), np.bool_)
    found = shared_thresholds(np.full(right.shape, 0.9), right, 0.05)
    assert [(threshold.value, threshold.proven, threshold.bound) for threshold in found] == [(1.0, False, 1.0)] * len(SHARES)


def test_layers_that_never_answer_have_no_threshold() -> None:
    silent = np.full((len(SHARES), 500), -1.0)
    assert not any(threshold.proven for threshold in shared_thresholds(silent, silent > 0, 0.3))


def test_the_error_of_all_answers_exceeds_the_budget_in_at_most_one_draw_of_twenty() -> None:
    random, budget, draws = np.random.default_rng(0), 0.1, 100
    others = drawn(20_000, random)
    exceeded = shown = 0
    for _ in range(draws):
        found = shared_thresholds(*drawn(500, random), budget)
        if found[-1].proven:
            shown += 1
            count, wrong = answered(*others, [threshold.value for threshold in found])[-1]
            exceeded += wrong / count > budget
    assert shown > draws / 2
    assert exceeded <= draws / 20
