"""Thresholds of several layers that keep one error budget together.

With a threshold of its own each layer may use up the whole budget, also one that compares words
and vectors where the next would read. So one number says how much doubt is allowed, and each
layer may have its share of it: the number rises as long as the error of all answers is proven to be
within the budget, which makes one sequence of rules to test (bounds.py). Pure.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kitbash_ray.bounds import LEVEL, STEP, Threshold, last_proven, proven

#: The layers, in the order in which they are asked, and their shares of the doubt (1 - confidence). A half was chosen on
#: the ordinary questions: with as many wrong answers as by a threshold for each layer alone, 3 of 100 questions more are
#: answered right and a third fewer of the swaps; 0.4 and 0.6 are about as good. The price is that layer 2 is asked a
#: fifth of them more often.
SHARES = {"grain": 0.5, "cartridge": 1.0}


def shared_thresholds(
    confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], max_error: float, level: float = LEVEL
) -> tuple[Threshold, ...]:
    """The lowest threshold of each layer of SHARES such that the error of all answers is at most `max_error`.

    Both arrays have a row for each layer and a column for each question; a layer without an answer has the
    confidence -1. A layer's entry counts its answers and those of the layers before it.
    """
    shares, questions = np.array(list(SHARES.values())), confidences.shape[1]
    doubts = np.where(confidences < 0, np.inf, (1 - confidences) / shares[:, None])
    rules = _rules(doubts.min(axis=0))
    counts = np.array([_answers(doubts, right, rule) for rule in rules]).reshape(len(rules), len(shares), 2)
    found = last_proven(counts[:, -1, 0], counts[:, -1, 1], questions, max_error, level)
    if found is None:
        return (Threshold(1.0, questions, 0, 0.0, 1.0),) * len(shares)
    values = np.maximum(0.0, 1 - shares * rules[found])
    return tuple(
        proven(float(value), questions, int(accepted), int(wrong), level)
        for value, (accepted, wrong) in zip(values, counts[found], strict=True)
    )


def _rules(doubts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The doubts to allow, from the least: as many answers lie between two as between two thresholds of one layer."""
    ordered = np.sort(doubts[np.isfinite(doubts)])
    steps = np.floor(np.arange(1, len(ordered) + 1) / max(1.0, STEP * len(ordered)))
    return np.unique(ordered[np.diff(steps, append=np.inf) > 0])


def _answers(doubts: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], rule: float) -> list[tuple[int, int]]:
    """For each layer, what it and those before it answer when `rule` is the doubt allowed: answers, and wrong ones."""
    answered, counts, wrong = np.zeros(doubts.shape[1], np.bool_), [], 0
    for doubt, its_right in zip(doubts, right, strict=True):
        answers = ~answered & (doubt <= rule)
        wrong += int(np.count_nonzero(answers & ~its_right))
        answered |= answers
        counts.append((int(np.count_nonzero(answered)), wrong))
    return counts
