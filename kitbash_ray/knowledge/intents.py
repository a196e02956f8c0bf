"""Which grain a question belongs to, where grains have many ways to ask: frequently asked questions, intents.

A grain's single nearest ask says little once there are dozens; what sets the asks of one grain
apart from those of all others says more. Softmax regression on the frozen vectors finds that
when the index is built, from no label but whose asks they are. How sure to be is learned from
the same asks: those left out are questions with an answer, those of grains left out entirely
are questions without one. Not here: facts with a few ways to ask (evidence.py judges those).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int32]

#: Asks that the grains of a cartridge have on average, from which on they are learned from. The shipped
#: cartridges, whose confidences were fitted without this, have fewer than five each.
MEAN_ASKS = 5.0
#: Grains with two asks or more, below which leaving out a fifth of them says nothing about questions without an answer.
MIN_GRAINS = 10
#: Asks times grains that are learned from at the most: two minutes on one core. With more grains,
#: each brings fewer asks; with too many for `MEAN_ASKS` each, nothing is learned.
MAX_WORK = 10_000_000
#: Strength of the fit against its regularization, and where its descent ends. 10 and 100 were no better
#: than 30 on parts of CLINC150 with 3 to 100 asks a grain; a looser end than this cost 2 points of accuracy.
STRENGTH, TOLERANCE = 30.0, 3e-4
#: What a cosine to the mean of a grain's asks counts beside the regression's log-odds. Regression alone tells
#: grains apart best, the mean tells strange questions best; 5 was the best of 0, 5, 10, 20, 40 for both
#: on parts of CLINC150 with its `oos_train` and with left-out intents.
MEAN_WEIGHT = 5.0
#: Parts that are left out in turn. With 3, confidences were 0.10 too high for questions that are close
#: to the subject and have no answer; with 5, 0.06 (and 0.02 too low for those far away).
FOLDS = 5


class Vote(NamedTuple):
    """The grain that a question most likely belongs to, and the log-odds that it does."""

    grain: int
    log_odds: float


class Intents:
    """Votes by the arrays that `fit_intents` made. Only reads them."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.grains: Numbers = arrays["intent_grains"]
        self._weights: Vectors = arrays["intent_weights"]
        self._bias: Vectors = arrays["intent_bias"]
        self._sureness: list[float] = arrays["intent_sureness"].tolist()

    def vote(self, vector: Vectors, allowed: npt.NDArray[np.bool_]) -> Vote | None:
        """The best of the allowed grains (one for each of `grains`); None where none is."""
        if not allowed.any():
            return None
        scores = np.where(allowed, self._weights @ vector + self._bias, -np.inf)
        best, score, lead = _best(scores[None, :])
        by_score, by_lead, bias = self._sureness
        return Vote(int(self.grains[best[0]]), by_score * float(score[0]) + by_lead * float(lead[0]) + bias)


def intent_cartridges(asks: Sequence[tuple[str, int]]) -> frozenset[str]:
    """Of (cartridge, number of asks) of each grain: the cartridges whose grains have `MEAN_ASKS` on average."""
    counts: dict[str, list[int]] = {}
    for cartridge, count in asks:
        counts.setdefault(cartridge, []).append(count)
    return frozenset(name for name, each in counts.items() if sum(each) >= MEAN_ASKS * len(each))


def fit_intents(vectors: Vectors, grains: Numbers) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `Intents` over asks, given each one's vector and its grain; empty arrays: nothing to learn."""
    numbers, owner, counts = np.unique(grains, return_inverse=True, return_counts=True)
    most = MAX_WORK // max(1, len(numbers)) ** 2
    if (counts >= 2).sum() < MIN_GRAINS or most < MEAN_ASKS:
        return _no_intents(vectors.shape[1])
    kept = _place_in_grain(owner) < most
    vectors, owner = vectors[kept], owner[kept]
    sureness = _sureness(vectors, owner)
    if sureness is None:
        return _no_intents(vectors.shape[1])
    weights, bias = _regression(vectors, owner)
    return {
        "intent_grains": numbers.astype(np.int32),
        "intent_weights": weights,
        "intent_bias": bias,
        "intent_sureness": sureness,
    }


def _no_intents(dimensions: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "intent_grains": np.zeros(0, np.int32),
        "intent_weights": np.zeros((0, dimensions), np.float32),
        "intent_bias": np.zeros(0, np.float32),
        "intent_sureness": np.zeros(3),
    }


def _place_in_grain(owner: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """How manieth of its grain's asks each ask is, in an order that chance fixed once."""
    shuffled = np.random.RandomState(0).permutation(len(owner))
    order = shuffled[np.argsort(owner[shuffled], kind="stable")]
    starts = np.searchsorted(owner[order], owner[order])
    place = np.empty(len(owner), np.intp)
    place[order] = np.arange(len(owner)) - starts
    return place


def _regression(vectors: Vectors, owner: npt.NDArray[np.intp]) -> tuple[Vectors, Vectors]:
    """Weights (grains, dimensions) and bias (grains): every grain counts alike, however many asks it has."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=STRENGTH, tol=TOLERANCE, max_iter=1000, class_weight="balanced").fit(vectors, owner)
    means = np.zeros((len(model.classes_), vectors.shape[1]), np.float32)
    np.add.at(means, owner, vectors)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
    return (model.coef_ + MEAN_WEIGHT * means).astype(np.float32), model.intercept_.astype(np.float32)


def _best(scores: Vectors) -> tuple[npt.NDArray[np.intp], Vectors, Vectors]:
    """Of each row of scores: the place of the best, its score, and its lead over the next (0 where there is none)."""
    best = scores.argmax(axis=1)
    if scores.shape[1] < 2:
        return best, scores[:, 0], np.zeros(len(scores), np.float32)
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    return best, first, np.where(np.isfinite(second), first - second, 0)


def _sureness(vectors: Vectors, owner: npt.NDArray[np.intp]) -> npt.NDArray[np.float64] | None:
    """What score, lead and 1 weigh in the log-odds of a right answer; None where no left-out ask was told right.

    As many questions have an answer as have none: what the traffic will be is not known here.
    """
    from sklearn.linear_model import LogisticRegression

    ask_fold = (_place_in_grain(owner) + owner) % FOLDS
    grain_fold = np.random.RandomState(0).permutation(owner.max() + 1) % FOLDS
    counts = np.bincount(owner)
    evidence, right, answerable, weight = [], [], [], []
    for fold in range(FOLDS):
        asked = ask_fold == fold
        taught, place = np.unique(owner[~asked & (grain_fold[owner] != fold)], return_inverse=True)
        weights, bias = _regression(vectors[~asked & (grain_fold[owner] != fold)], place)
        best, score, lead = _best(vectors[asked] @ weights.T + bias)
        evidence.append(np.column_stack([score, lead]))
        right.append(taught[best] == owner[asked])
        answerable.append(np.isin(owner[asked], taught))
        weight.append(1 / counts[owner[asked]])
    is_right, has_answer, weights = np.concatenate(right), np.concatenate(answerable), np.concatenate(weight)
    if not is_right.any():
        return None
    for group in (has_answer, ~has_answer):
        weights[group] *= len(weights) / 2 / weights[group].sum()
    fit = LogisticRegression(C=100.0).fit(np.concatenate(evidence), is_right, sample_weight=weights)
    return np.array([*np.maximum(fit.coef_[0], 0), fit.intercept_[0]])
