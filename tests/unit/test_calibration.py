"""From evidence to probabilities and thresholds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from kitbash_ray.calibration import LEAF, LayerCalibration, load_calibration, lowest_threshold
from kitbash_ray.knowledge.evidence import ALWAYS_AGAINST, ALWAYS_FOR, FEATURES

#: `a` above 0.5 speaks for an answer; of those at or below it, `b` above 0.2 speaks against.
TREE = (
    (0, 0.5, 1, 4, 0.0),
    (1, 0.2, 2, 3, 0.0),
    (LEAF, 0.0, 0, 0, 0.5),
    (LEAF, 0.0, 0, 0, -2.0),
    (LEAF, 0.0, 0, 0, 3.0),
)
STUMP = ((LEAF, 0.0, 0, 0, 0.25),)
FIT = LayerCalibration(("a", "b"), (TREE, STUMP), -1.0, 10, ((0.01, 0.97), (0.05, 0.9), (0.2, 0.6)))


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [(0.001, 1.0), (0.01, 0.97), (0.04, 0.97), (0.05, 0.9), (0.1 - 0.05, 0.9), (0.19, 0.9), (0.2, 0.6), (0.99, 0.6)],
)
def test_a_budget_gets_the_threshold_of_the_next_stricter_one_that_was_fitted(budget: float, threshold: float) -> None:
    assert FIT.threshold(budget) == threshold


@pytest.mark.parametrize(
    ("features", "log_odds"),
    [((0.6, 0.9), 2.25), ((0.5, 0.2), -0.25), ((0.5, 0.3), -2.75), ((-1e9, -1e9), -0.25), ((math.inf, 0.0), 2.25)],
)
def test_confidence_is_the_logistic_function_of_the_leaves_that_the_features_lead_to(
    features: tuple[float, ...], log_odds: float
) -> None:
    assert FIT.confidence(features) == pytest.approx(1 / (1 + math.exp(-log_odds)))


def test_a_fit_reads_past_features_that_were_added_after_it() -> None:
    assert FIT.confidence((1.0, 2.0, 3.0)) == FIT.confidence((1.0, 2.0))


def test_a_fit_reads_the_features_that_its_trees_split_on() -> None:
    split = ((0, 0.5, 1, 2, 0.0), (-1, 0.0, 0, 0, -1.0), (-1, 0.0, 0, 0, 1.0))
    fit = LayerCalibration(("a", "b"), (split,), 0.0, 1, ())
    assert [fit.reads(name) for name in ("a", "b", "c")] == [True, False, False]


@pytest.mark.parametrize("bias", [1e9, -1e9])
def test_extreme_evidence_gives_a_probability_and_no_overflow(bias: float) -> None:
    assert 0.0 <= LayerCalibration((), (), bias, 1, ()).confidence(()) <= 1.0


@pytest.mark.parametrize("features", [(), (1.0,)])
def test_too_few_features_are_refused(features: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="features"):
        FIT.confidence(features)


def test_the_shipped_calibration_fits_what_is_measured() -> None:
    calibration = load_calibration()
    assert calibration.version
    assert 0 < calibration.exact <= 1
    assert {"grain", "cartridge"} <= calibration.layers.keys()
    for fit in calibration.layers.values():
        assert fit.features == FEATURES[: len(fit.features)]
        assert fit.questions > 0


def test_the_shipped_thresholds_fall_as_the_budget_rises() -> None:
    for fit in load_calibration().layers.values():
        thresholds = [threshold for _, threshold in sorted(fit.thresholds)]
        assert thresholds == sorted(thresholds, reverse=True)
        assert all(0 < threshold <= 1 for threshold in thresholds)


@pytest.mark.parametrize("layer", ["grain", "cartridge"])
def test_more_evidence_for_an_answer_never_makes_the_shipped_fit_less_sure(layer: str) -> None:
    fit = load_calibration().layers[layer]
    random = np.random.default_rng(0)
    for row in random.random((100, len(FEATURES))):
        before = fit.confidence(tuple(row))
        for name in ALWAYS_FOR | ALWAYS_AGAINST:
            changed = row.copy()
            changed[FEATURES.index(name)] += 0.3 if name in ALWAYS_FOR else -0.3
            assert fit.confidence(tuple(changed)) >= before, name


def test_a_calibration_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(
        '{"version": "v", "exact": 0.5, "layers": {"grain": {"features": ["a"], "trees": [[[-1, 0, 0, 0, 1]]],'
        ' "bias": 0, "questions": 3, "thresholds": {"0.05": 0.7}}}}'
    )
    calibration = load_calibration(path)
    assert (calibration.version, calibration.exact) == ("v", 0.5)
    assert calibration.layers["grain"].threshold(0.05) == 0.7
    assert calibration.layers["grain"].confidence((1.0,)) == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize(
    ("confidences", "right", "max_error", "threshold"),
    [
        ([0.9, 0.8, 0.7], [True, True, True], 0.0, 0.7),
        ([0.9, 0.8, 0.7], [True, False, True], 0.0, 0.9),
        ([0.9, 0.8, 0.7], [True, False, True], 0.34, 0.7),
        ([0.7, 0.9, 0.8], [True, True, False], 0.34, 0.7),  # in any order
        ([0.9, 0.8], [False, False], 0.1, 1.0),
        ([], [], 0.1, 1.0),
    ],
)
def test_the_lowest_threshold_keeps_to_the_budget(
    confidences: list[float], right: list[bool], max_error: float, threshold: float
) -> None:
    assert lowest_threshold(np.array(confidences), np.array(right, np.bool_), max_error) == threshold


def test_equal_confidences_are_accepted_or_refused_together() -> None:
    # At and above 0.9 half of the answers are wrong, so 0.9 cannot keep to a budget of 0
    assert lowest_threshold(np.array([0.9, 0.9]), np.array([True, False]), 0.0) > 0.9
