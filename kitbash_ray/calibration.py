"""From evidence to a probability, and from an error budget to a threshold.

A calibration is fitted on held-out questions (benchmarks/fit_calibration.py) and shipped as
calibration.json: for each layer the weights of a logistic regression over its features, and
for each error budget the lowest confidence whose answers kept to it on those questions.
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


@dataclass(frozen=True, slots=True)
class LayerCalibration:
    """One layer's fit. `features` names the inputs in order; `thresholds` maps budget to confidence."""

    features: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float
    questions: int
    thresholds: tuple[tuple[float, float], ...]

    def confidence(self, features: Sequence[float]) -> float:
        """The probability that an answer with these features is right."""
        score = self.bias + sum(w * x for w, x in zip(self.weights, features, strict=True))
        return 1 / (1 + math.exp(-max(-40.0, min(40.0, score))))

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
            tuple(fit["weights"]),
            fit["bias"],
            fit["questions"],
            tuple((float(budget), float(threshold)) for budget, threshold in fit["thresholds"].items()),
        )
        for name, fit in raw["layers"].items()
    }
    return Calibration(raw["version"], raw["exact"], layers)


def fit_logistic(
    inputs: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], *, ridge: float = 3.0
) -> tuple[npt.NDArray[np.float64], float]:
    """Weights and bias of a ridge logistic regression, by Newton's method.

    `inputs` has shape (n, features); features are standardized inside, weights are for raw ones.
    """
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale[scale == 0] = 1.0
    x = np.hstack([(inputs - mean) / scale, np.ones((len(inputs), 1))])
    penalty = np.diag([ridge] * inputs.shape[1] + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ w)))
        gradient = x.T @ (p - labels) + penalty @ w
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(w)), gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return weights, float(w[-1] - weights @ mean)


def lowest_threshold(
    confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], max_error: float
) -> float:
    """The lowest confidence at and above which at most `max_error` of the answers are wrong; 1 if none."""
    order = np.argsort(-confidences, kind="stable")
    wrong = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    kept = np.flatnonzero(wrong <= max_error)
    return float(confidences[order][kept[-1]]) if len(kept) else 1.0
