"""Fitting a calibration on made-up evidence whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from kitbash_ray import fitting
from kitbash_ray.evaluation import calibration_error
from kitbash_ray.fitting import FEATURES_OF, Sample, calibrate, fit_layer, left_out, load_samples, sample, save_samples
from kitbash_ray.questions import Question
from kitbash_ray.types import LayerResult, Source

LAYER = "bitnet"
ATP = Source("bio", "bio:atp", "ATP carries energy.", 0.9)


def drawn(count: int, seed: int = 0, layer: str = LAYER) -> list[Sample]:
    """Samples whose first feature x makes them right with probability 1 / (1 + exp(-6 x)); three others only vary."""
    random = np.random.default_rng(seed)
    evidence = np.zeros((count, len(FEATURES_OF[layer])))
    evidence[:, :4] = random.uniform(-1, 1, (count, 4)).round(4)
    right = random.random(count) < 1 / (1 + np.exp(-6 * evidence[:, 0]))
    return [
        Sample(number, tuple(row), bool(good), True, False, True, "made")
        for number, (row, good) in enumerate(zip(evidence.tolist(), right, strict=True))
    ]


def test_confidences_of_questions_that_the_fit_has_not_seen_are_true() -> None:
    samples = drawn(3000)
    fit, unseen = fit_layer(samples, LAYER)
    right = np.array([item.right for item in samples])
    assert calibration_error(unseen, right) < 0.04
    assert fit.questions == 3000
    assert fit.accuracy == pytest.approx(right.mean(), abs=1e-3)


def test_thresholds_hold_on_questions_that_no_fit_has_seen() -> None:
    fit, _ = fit_layer(drawn(3000), LAYER)
    others = drawn(5000, seed=1)
    confidences = np.array([fit.confidence(item.evidence) for item in others])
    right = np.array([item.right for item in others])
    for budget, threshold in fit.thresholds:
        if threshold.proven:
            assert 1 - right[confidences >= threshold.value].mean() <= budget
    assert fit.threshold(0.1).proven


def test_one_question_in_several_sets_is_left_out_of_all_of_them_at_once() -> None:
    # The feature tells nothing; a fit could only know the answer by having met the question.
    items = [
        Sample(number, (float(number), 0.0, 0.0, 0.0), number % 2 == 0, True, False, True, group)
        for number in range(300)
        for group in ("one", "other")
    ]
    unseen = left_out(items, [0, 0, 0, 0])
    right = np.array([item.right for item in items])
    assert abs(unseen[right].mean() - unseen[~right].mean()) < 0.3  # having met it: 1


def test_more_of_what_speaks_for_an_answer_never_makes_it_less_sure() -> None:
    fit, _ = fit_layer(drawn(500), LAYER)
    rising = [fit.confidence((x, 0.0, 0.0, 0.0)) for x in np.linspace(-1, 1, 50)]
    assert rising == sorted(rising)


def test_a_layer_with_too_few_answers_gets_no_fit() -> None:
    fit, unseen = calibrate({LAYER: drawn(fitting.FEWEST - 1), "kobold": drawn(fitting.FEWEST)}, (0, 998), {"kobold": "m.gguf"})
    assert set(fit.layers) == set(unseen) == {"kobold"}
    assert fit.layers["kobold"].model == "m.gguf"
    assert fit.exact == 0.999


def test_layers_0_and_2_keep_a_budget_together_and_a_layer_alone_keeps_its_own() -> None:
    samples = {layer: drawn(400, seed, layer) for seed, layer in enumerate(("grain", "bitnet", "cartridge"))}
    fit, _ = calibrate(samples, (0, 998))
    alone, _ = fit_layer(samples["bitnet"], "bitnet")
    assert fit.layers["bitnet"].thresholds == alone.thresholds
    grain, cartridge = (fit.layers[layer].threshold(0.3) for layer in ("grain", "cartridge"))
    assert grain
    assert cartridge
    assert 1 - grain.value == pytest.approx((1 - cartridge.value) / 2)
    assert grain.accepted < cartridge.accepted <= 400
    assert cartridge.bound <= 0.3


def test_what_only_teaches_does_not_count_in_a_shared_budget() -> None:
    samples = {layer: drawn(400, seed, layer) for seed, layer in enumerate(("grain", "cartridge"))}
    traps = {layer: [replace(item, traffic=False, right=False, group="traps") for item in samples[layer]] for layer in samples}
    fit, _ = calibrate({layer: samples[layer] + traps[layer] for layer in samples}, (0, 998))
    threshold = fit.layers["cartridge"].threshold(0.3)
    assert threshold
    assert threshold.questions == 400


def test_the_version_tells_fits_apart() -> None:
    first, again, other = (calibrate({LAYER: drawn(200, seed)}, (0, 10))[0].version for seed in (0, 0, 1))
    assert first == again != other


def test_answers_that_are_all_right_are_not_certain() -> None:
    fit, _ = fit_layer([Sample(n, (0.0,) * 4, True, True, False, True, "made") for n in range(200)], LAYER)
    assert 0.99 < fit.confidence((0.0,) * 4) < 1


@pytest.mark.parametrize(
    ("question", "said", "right"),
    [
        (Question("q", ("bio:atp",)), {}, True),
        (Question("q", ("bio:dna",)), {}, False),
        (Question("q"), {}, False),
        (Question("q", refused="bio:atp"), {}, False),
        (Question("q", refused="bio:dna"), {}, None),  # another answer than the one that was found wrong
        (Question("q", ("bio:atp",)), {"outcome": "abstained"}, None),
        (Question("q", ("bio:atp",)), {"evidence": ()}, None),
    ],
)
def test_an_answer_teaches_only_where_its_truth_is_known(
    question: Question, said: dict[str, object], right: bool | None
) -> None:
    fields = {"outcome": "answered", "text": ATP.text, "sources": (ATP,), "evidence": (0.5,)} | said
    found = sample(question, LayerResult(LAYER, **fields), traffic=True, group="made")
    assert (found and found.right) == right


def test_samples_are_stored_and_read_back(tmp_path: Path) -> None:
    made = {LAYER: drawn(20), "kobold": drawn(3, seed=1)}
    save_samples(made, tmp_path / "samples.npz")
    assert load_samples(tmp_path / "samples.npz") == made


def test_the_shipped_samples_are_of_the_evidence_of_this_version() -> None:
    for layer, samples in load_samples().items():
        assert {len(item.evidence) for item in samples} == {len(FEATURES_OF[layer])}
        assert {item.group for item in samples}.isdisjoint({"newcomer", "swaps"})
