"""How good answers to questions with known answers are, as numbers. Pure: outcomes in, measures out.

`Judged` is one question's outcome; `Score` counts them. Not here: asking (whoever has layers),
the pictures (plots.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from kitbash_ray.questions import Question
from kitbash_ray.types import Answer

#: Confidence ranges of a reliability diagram and of the calibration error.
BINS = 10

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Judged(Struct, frozen=True):
    """A question and what came of it. `right`: the answer, or the best candidate if none was given, is right."""

    question: Question
    answer: Answer
    right: bool

    @property
    def answered(self) -> bool:
        return self.answer.status == "answered"

    @property
    def confidence(self) -> float:
        """That in the answer or the best candidate; 0 without either."""
        return self.answer.confidence or 0.0


class Score(Struct, frozen=True):
    """Counts over some questions. An abstention is right when there is nothing to answer."""

    questions: int
    answerable: int
    right: int
    wrong: int
    abstained: int
    abstained_rightly: int
    failed: int

    @property
    def precision(self) -> float | None:
        """Share of the answers that are right; None without answers."""
        answers = self.right + self.wrong
        return self.right / answers if answers else None

    @property
    def coverage(self) -> float | None:
        """Share of the answerable questions that are answered right; None without any."""
        return self.right / self.answerable if self.answerable else None


def judge(question: Question, answer: Answer) -> Judged:
    return Judged(question, answer, question.right(answer))


def score(items: Iterable[Judged]) -> Score:
    items = list(items)
    answered = [item for item in items if item.answered]
    abstained = [item for item in items if item.answer.status == "abstained"]
    right = sum(item.right for item in answered)
    return Score(
        questions=len(items),
        answerable=sum(item.question.answerable for item in items),
        right=right,
        wrong=len(answered) - right,
        abstained=len(abstained),
        abstained_rightly=sum(not item.question.answerable for item in abstained),
        failed=len(items) - len(answered) - len(abstained),
    )


def calibration_error(confidences: Floats, right: Bools) -> float:
    """Expected calibration error: how far stated confidence and observed accuracy lie apart, over equal ranges."""
    return float(sum(abs(said - was) * share for said, was, share in reliability(confidences, right)))


def reliability(confidences: Floats, right: Bools) -> list[tuple[float, float, float]]:
    """Of each range of confidences that occurs: mean confidence, accuracy, share of all answers."""
    bins = np.clip((confidences * BINS).astype(int), 0, BINS - 1)
    return [
        (float(confidences[bins == b].mean()), float(right[bins == b].mean()), float((bins == b).mean()))
        for b in sorted(set(bins.tolist()))
    ]


def risk_coverage(confidences: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Coverage and risk when the surest 1, 2, ... n are answered: shares of all questions, and of those answered wrong."""
    order = np.argsort(-confidences, kind="stable")
    counts = np.arange(1, len(order) + 1)
    return counts / max(1, len(order)), np.cumsum(~right[order]) / counts


def area_under(risk: Floats) -> float:
    """The area under the risk-coverage curve: the mean risk over all coverages; lower is better."""
    return float(risk.mean()) if len(risk) else 0.0


def columns(items: Sequence[Judged]) -> tuple[Floats, Bools]:
    """Confidences, and whether answering would have been right."""
    return np.array([item.confidence for item in items]), np.array([item.right for item in items], np.bool_)
