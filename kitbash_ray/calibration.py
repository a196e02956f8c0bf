"""From evidence to a probability, and from an error budget to a threshold.

A calibration is fitted on held-out questions (fitting.py, `kitbash calibrate`): for each layer
an ensemble of small decision trees over its features whose sum is a log-odds (gradient
boosting, monotone where the sign of a feature is known), and for each error budget the lowest
confidence whose answers provably keep to it (bounds.py). calibration.json ships with Kitbash.
Not here: fitting, and what the features are (knowledge/evidence.py, layers/generative.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from kitbash_ray.bounds import Threshold
from kitbash_ray.errors import ConfigError

SHIPPED = Path(__file__).with_name("calibration.json")

#: One node of a tree: (feature, threshold, left, right, value). A leaf has feature -1 and the value;
#: an input at or below the threshold goes left.
Node = tuple[int, float, int, int, float]
LEAF = -1


class LayerCalibration(Struct, frozen=True):
    """One layer's fit over its `features`, in order.

    `accuracy` is the share of its answers to held-out questions that are right, whatever their
    confidence; `thresholds` go with the error budgets in rising order. A fit of a language model
    holds for `model` only.
    """

    features: tuple[str, ...]
    trees: tuple[tuple[Node, ...], ...]
    bias: float
    questions: int
    accuracy: float
    thresholds: tuple[tuple[float, Threshold], ...]
    model: str | None = None

    def confidence(self, features: Sequence[float]) -> float:
        """The probability that an answer with these features is right. Raises ValueError for another number of them."""
        if len(features) != len(self.features):
            raise ValueError(f"expected the features {self.features}, got {len(features)} numbers")
        score = self.bias + sum(_leaf(tree, features) for tree in self.trees)
        return logistic(score)

    def reads(self, feature: str) -> bool:
        """Whether any tree asks for it: whether the questions of the fit had something to teach about it."""
        at = self.features.index(feature) if feature in self.features else None
        return at is not None and any(node[0] == at for tree in self.trees for node in tree)

    def threshold(self, max_error: float) -> Threshold | None:
        """That of the next stricter budget that was fitted, None without one."""
        fitting = [threshold for budget, threshold in self.thresholds if budget <= max_error + 1e-9]
        return fitting[-1] if fitting else None


class Calibration(Struct, frozen=True):
    """All fitted layers; `version` names the fit in every answer.

    `exact` is the confidence of an exact match and `exact_bound` its error at most, made of
    `exact_matches`: how many ways to ask found another fact than their own, and how many there were.
    """

    version: str
    exact: float
    exact_bound: float
    layers: dict[str, LayerCalibration]
    exact_matches: tuple[int, int] = (0, 0)

    def enough(self, layer: str, max_error: float) -> float:
        """The confidence from which an answer of `layer` fits the budget; 1 if none is known to."""
        fit = self.layers.get(layer)
        threshold = fit.threshold(max_error) if fit else None
        if threshold and threshold.proven:
            return threshold.value
        return self.exact if layer == "grain" and self.exact_bound <= max_error else 1.0

    def accuracy(self, layer: str) -> float:
        """How often the layer's answers are right; half as often as not if nobody has measured."""
        fit = self.layers.get(layer)
        return fit.accuracy if fit else 0.5


def load_calibration(path: Path = SHIPPED) -> Calibration:
    """The calibration in `path`. Raises ConfigError when it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"The calibration {path} cannot be used ({error}): make one with `kitbash calibrate`.") from error


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(calibration) + b"\n")
    partial.replace(path)


def logistic(log_odds: float) -> float:
    """The probability that log-odds stand for."""
    return 1 / (1 + math.exp(-max(-40.0, min(40.0, log_odds))))


def _leaf(tree: tuple[Node, ...], features: Sequence[float]) -> float:
    """The value of the leaf that the features lead to."""
    feature, threshold, left, right, value = tree[0]
    while feature != LEAF:
        feature, threshold, left, right, value = tree[left if features[feature] <= threshold else right]
    return value
