"""What a number of errors among a number of answers allows to say, and which threshold that justifies.

Exact binomial (Clopper-Pearson) bounds; the thresholds are chosen by fixed-sequence testing, as
in Angelopoulos et al., "Learn then Test" (2021). Pure: numbers in, numbers out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

#: With how much confidence a bound holds.
LEVEL = 0.95
#: Where the sequences of tests begin, as shares of the answers, the surest first. Each sequence goes
#: on to ever lower thresholds until a test fails, so only the number of sequences costs confidence.
#: One alone fails for good at an early error, and each more costs every test some power.
STARTS = (0.1, 0.25, 0.5, 0.75)
#: Thresholds that are tested lie at least this share of the answers apart.
STEP = 0.01


class Threshold(Struct, frozen=True, gc=False):
    """The lowest confidence to accept, and what is known of the answers at and above it.

    `accepted` of `questions` answers were; `error` is the share of them that was wrong, `bound`
    what their true error is at most, with `LEVEL` confidence. Nothing proven: `value` is 1.
    """

    value: float
    questions: int
    accepted: int
    error: float
    bound: float

    @property
    def proven(self) -> bool:
        return self.value < 1

    @property
    def coverage(self) -> float:
        """Share of the questions that are accepted."""
        return self.accepted / self.questions if self.questions else 0.0


def upper_bound(wrong: int, answers: int, level: float = LEVEL) -> float:
    """The error rate that is exceeded with at most 1 - `level` probability; 1 without answers."""
    return float(_upper_bounds(np.array([wrong]), np.array([answers]), level)[0])


def _upper_bounds(wrong: npt.NDArray[np.intp], answers: npt.NDArray[np.intp], level: float) -> npt.NDArray[np.float64]:
    from scipy.stats import beta

    some_right: npt.NDArray[np.intp] = np.maximum(answers - wrong, 1)
    bounds: npt.NDArray[np.float64] = np.where(wrong >= answers, 1.0, beta.ppf(level, wrong + 1, some_right))
    return bounds


def lower_bound(wrong: int, answers: int, level: float = LEVEL) -> float:
    """The error rate that is fallen short of with at most 1 - `level` probability."""
    from scipy.stats import beta

    return 0.0 if wrong == 0 else float(beta.ppf(1 - level, wrong, answers - wrong + 1))


def lowest_threshold(
    confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], max_error: float, level: float = LEVEL
) -> Threshold:
    """The lowest threshold whose error is at most `max_error` with `level` confidence, over all thresholds tried.

    `confidences` and `right` have one entry for each answer; every answer counts alike.
    """
    total = len(confidences)
    ends, wrong, values = _thresholds(confidences, right)
    found = last_proven(ends, wrong, total, max_error, level)
    if found is None:
        return Threshold(1.0, total, 0, 0.0, 1.0)
    return proven(float(values[found]), total, int(ends[found]), int(wrong[found]), level)


def last_proven(
    accepted: npt.NDArray[np.intp], wrong: npt.NDArray[np.intp], total: int, max_error: float, level: float = LEVEL
) -> int | None:
    """Of rules, the strictest first, that accept so many of `total` answers and so many wrong ones among them: the
    place of the last whose error is at most `max_error` with `level` confidence, over all rules tried."""
    holds = _upper_bounds(wrong, accepted, _corrected(level)) <= max_error
    found = -1
    for start in STARTS:
        first = int(np.searchsorted(accepted, start * total))
        failures = np.flatnonzero(~holds[first:])
        passed = int(failures[0]) if len(failures) else len(holds) - first
        found = max(found, first + passed - 1 if passed else -1)
    return None if found < 0 else found


def proven(value: float, questions: int, accepted: int, wrong: int, level: float = LEVEL) -> Threshold:
    """A threshold that was found by `last_proven`, with its bound."""
    return Threshold(value, questions, accepted, wrong / max(1, accepted), upper_bound(wrong, accepted, _corrected(level)))


def _corrected(level: float) -> float:
    """The confidence that each test needs so that all sequences together have `level`."""
    return 1 - (1 - level) / len(STARTS)


def _thresholds(
    confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float64]]:
    """For each threshold to test, the strictest first: answers accepted, wrong ones among them, its value."""
    order = np.argsort(-confidences, kind="stable")
    ordered, wrong = confidences[order], np.cumsum(~right[order])
    # Equal confidences stand or fall together.
    ends = np.flatnonzero(np.diff(ordered, append=-1.0)) + 1
    steps = np.floor(ends / max(1.0, STEP * len(ordered)))
    ends = ends[np.diff(steps, append=np.inf) > 0]
    return ends, wrong[ends - 1], ordered[ends - 1]
