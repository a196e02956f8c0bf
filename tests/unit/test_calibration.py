"""From evidence to probabilities and thresholds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from kitbash_ray.bounds import Threshold, lower_bound, lowest_threshold, upper_bound
from kitbash_ray.calibration import LEAF, Calibration, LayerCalibration, load_calibration, save_calibration
from kitbash_ray.errors import ConfigError
from kitbash_ray.fitting import FEATURES_OF
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
THRESHOLDS = tuple(
    (budget, Threshold(value, 100, 80, 0.0, budget)) for budget, value in ((0.01, 0.97), (0.05, 0.9), (0.2, 0.6))
)
FIT = LayerCalibration(("a", "b"), (TREE, STUMP), -1.0, 10, 0.8, THRESHOLDS)


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [(0.001, None), (0.01, 0.97), (0.04, 0.97), (0.05, 0.9), (0.1 - 0.05, 0.9), (0.19, 0.9), (0.2, 0.6), (0.99, 0.6)],
)
def test_a_budget_gets_the_threshold_of_the_next_stricter_one_that_was_fitted(budget: float, threshold: float | None) -> None:
    found = FIT.threshold(budget)
    assert (found and found.value) == threshold


@pytest.mark.parametrize(
    ("features", "log_odds"),
    [((0.6, 0.9), 2.25), ((0.5, 0.2), -0.25), ((0.5, 0.3), -2.75), ((-1e9, -1e9), -0.25), ((math.inf, 0.0), 2.25)],
)
def test_confidence_is_the_logistic_function_of_the_leaves_that_the_features_lead_to(
    features: tuple[float, ...], log_odds: float
) -> None:
    assert FIT.confidence(features) == pytest.approx(1 / (1 + math.exp(-log_odds)))


def test_a_fit_reads_the_features_that_its_trees_split_on() -> None:
    split = ((0, 0.5, 1, 2, 0.0), (-1, 0.0, 0, 0, -1.0), (-1, 0.0, 0, 0, 1.0))
    fit = LayerCalibration(("a", "b"), (split,), 0.0, 1, 0.5, ())
    assert [fit.reads(name) for name in ("a", "b", "c")] == [True, False, False]


@pytest.mark.parametrize("bias", [1e9, -1e9])
def test_extreme_evidence_gives_a_probability_and_no_overflow(bias: float) -> None:
    assert 0.0 <= LayerCalibration((), (), bias, 1, 0.0, ()).confidence(()) <= 1.0


@pytest.mark.parametrize("features", [(), (1.0,), (1.0, 2.0, 3.0)])
def test_features_of_the_wrong_number_are_refused(features: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="features"):
        FIT.confidence(features)


def test_the_shipped_calibration_fits_what_is_measured() -> None:
    calibration = load_calibration()
    assert calibration.version
    assert 0 < calibration.exact <= 1
    assert calibration.layers.keys() == {"grain", "bitnet", "cartridge"}
    for layer, fit in calibration.layers.items():
        assert fit.features == FEATURES_OF[layer]
        assert fit.questions > 0


def test_the_shipped_thresholds_fall_as_the_budget_rises() -> None:
    for fit in load_calibration().layers.values():
        thresholds = [threshold.value for _, threshold in fit.thresholds]
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


def test_a_calibration_is_saved_whole_and_read_back(tmp_path: Path) -> None:
    made = Calibration("v", 0.5, 0.6, {"grain": FIT})
    save_calibration(made, tmp_path / "folder" / "calibration.json")
    assert load_calibration(tmp_path / "folder" / "calibration.json") == made
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["calibration.json"]


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": 3}', "no JSON"])
def test_a_calibration_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="make one with `kitbash calibrate`"):
        load_calibration(path)


@pytest.mark.parametrize(("wrong", "answers", "bound"), [(0, 59, 0.0495), (0, 0, 1.0), (5, 5, 1.0), (3, 100, 0.0758)])
def test_the_upper_bound_is_that_of_clopper_and_pearson(wrong: int, answers: int, bound: float) -> None:
    assert upper_bound(wrong, answers) == pytest.approx(bound, abs=5e-4)


@pytest.mark.parametrize(("wrong", "answers", "bound"), [(0, 10, 0.0), (10, 100, 0.0553), (5, 5, 0.549)])
def test_the_lower_bound_is_that_of_clopper_and_pearson(wrong: int, answers: int, bound: float) -> None:
    assert lower_bound(wrong, answers) == pytest.approx(bound, abs=5e-4)


def test_a_threshold_is_the_lowest_that_is_proven() -> None:
    confidences = np.linspace(1, 0, 1000)
    right = confidences > 0.4
    found = lowest_threshold(confidences, right, 0.05)
    assert found.proven
    assert 0.37 < found.value < 0.41
    assert found.bound <= 0.05
    assert found.accepted == np.count_nonzero(confidences >= found.value)


@pytest.mark.parametrize("answers", [0, 1, 30])
def test_with_too_few_answers_nothing_is_proven(answers: int) -> None:
    found = lowest_threshold(np.linspace(0.9, 0.8, answers), np.ones(answers, np.bool_), 0.05)
    assert (found.value, found.proven, found.bound) == (1.0, False, 1.0)


def test_equal_confidences_are_accepted_or_refused_together() -> None:
    right = np.arange(400) % 2 == 0
    assert not lowest_threshold(np.full(400, 0.9), right, 0.2).proven
    assert lowest_threshold(np.full(400, 0.9), right, 0.7).accepted == 400


def test_the_error_of_a_proven_threshold_exceeds_the_budget_in_at_most_one_draw_of_twenty() -> None:
    random = np.random.default_rng(0)
    draws, budget, exceeded, proven = 200, 0.05, 0, 0
    everything = random.beta(12, 1, 100_000)
    for _ in range(draws):
        confidences = random.beta(12, 1, 500)
        found = lowest_threshold(confidences, random.random(500) < confidences, budget)
        accepted = everything[everything >= found.value]
        proven += found.proven
        exceeded += found.proven and (1 - accepted).mean() > budget
    assert proven > draws / 2
    assert exceeded <= draws / 20
