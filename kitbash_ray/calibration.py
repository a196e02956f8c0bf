"""From evidence to a probability, and from an error budget to a threshold.

A calibration is fitted on held-out questions (benchmarks/fit_calibration.py) and shipped as
calibration.json: for each layer an ensemble of small decision trees over its features whose
sum is a log-odds (gradient boosting, monotone where the sign of a feature is known), and for
each error budget the lowest confidence whose answers kept to it on those questions.
Pure: numbers in, numbers out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHIPPED = Path(__file__).with_name("calibration.json")


#: One node of a tree: (feature, threshold, left, right, value). A leaf has feature -1 and the value;
#: an input at or below the threshold goes left.
Node = tuple[int, float, int, int, float]
LEAF = -1


@dataclass(frozen=True, slots=True)
class LayerCalibration:
    """One layer's fit. `features` names the inputs in order; `thresholds` maps budget to confidence.

    Features are only ever added at the end, so an older fit reads those that it knows.
    """

    features: tuple[str, ...]
    trees: tuple[tuple[Node, ...], ...]
    bias: float
    questions: int
    thresholds: tuple[tuple[float, float], ...]

    def confidence(self, features: Sequence[float]) -> float:
        """The probability that an answer with these features is right. Raises ValueError for fewer than it reads."""
        if len(features) < len(self.features):
            raise ValueError(f"expected the features {self.features}, got {len(features)} numbers")
        score = self.bias + sum(_leaf(tree, features) for tree in self.trees)
        return logistic(score)

    def reads(self, feature: str) -> bool:
        """Whether any tree asks for it: whether the questions of the fit had something to teach about it."""
        at = self.features.index(feature) if feature in self.features else None
        return at is not None and any(node[0] == at for tree in self.trees for node in tree)

    def threshold(self, max_error: float) -> float:
        """The lowest confidence to accept; that of the next stricter budget that was fitted."""
        fitting = [threshold for budget, threshold in self.thresholds if budget <= max_error + 1e-9]
        return min(fitting, default=1.0)


@dataclass(frozen=True, slots=True)
class Calibration:
    """All fitted layers. `exact` is the confidence of an exact match, `version` names the fit."""

    version: str
    exact: float
    layers: dict[str, LayerCalibration]


@cache
def load_calibration(path: Path = SHIPPED) -> Calibration:
    """The calibration in `path`; the one that ships with Kitbash by default."""
    raw = json.loads(path.read_text())
    layers = {
        name: LayerCalibration(
            tuple(fit["features"]),
            tuple(
                tuple((int(f), float(t), int(left), int(right), float(v)) for f, t, left, right, v in tree)
                for tree in fit["trees"]
            ),
            fit["bias"],
            fit["questions"],
            tuple((float(budget), float(threshold)) for budget, threshold in fit["thresholds"].items()),
        )
        for name, fit in raw["layers"].items()
    }
    return Calibration(raw["version"], raw["exact"], layers)


def logistic(log_odds: float) -> float:
    """The probability that log-odds stand for."""
    return 1 / (1 + math.exp(-max(-40.0, min(40.0, log_odds))))


def _leaf(tree: tuple[Node, ...], features: Sequence[float]) -> float:
    """The value of the leaf that the features lead to."""
    feature, threshold, left, right, value = tree[0]
    while feature != LEAF:
        feature, threshold, left, right, value = tree[left if features[feature] <= threshold else right]
    return value


def lowest_threshold(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], max_error: float) -> float:
    """The lowest confidence at and above which at most `max_error` of the answers are wrong; 1 if none."""
    order = np.argsort(-confidences, kind="stable")
    wrong = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    ordered = confidences[order]
    last_of_its_kind = np.append(ordered[1:] != ordered[:-1], True)  # equal ones stand or fall together
    kept = np.flatnonzero((wrong <= max_error) & last_of_its_kind)
    return float(ordered[kept[-1]]) if len(kept) else 1.0
