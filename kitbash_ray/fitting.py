"""Fitting a calibration: held-out questions in, probabilities and thresholds out.

Boosted trees over a layer's evidence; the confidences that thresholds are proven on come from
five-fold cross-fitting by question, so no question judges a fit that has seen it. Traps (close
near-misses, obscure questions) teach the trees; the error budget is kept on what people
ordinarily ask, which is the traffic. Uses scikit-learn. Not here: the mathematics of a
threshold (bounds.py) and using a fit (calibration.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from kitbash_ray.bounds import lowest_threshold, upper_bound
from kitbash_ray.calibration import LEAF, Calibration, LayerCalibration, Node
from kitbash_ray.knowledge.evidence import ALWAYS_AGAINST, ALWAYS_FOR, FEATURES
from kitbash_ray.knowledge.grain_index import FACTIONS, GrainIndex, Scope
from kitbash_ray.knowledge.verifier import taught_questions
from kitbash_ray.layers.generative import TOKEN_FEATURES, TOKENS_FOR
from kitbash_ray.questions import Question, question_key
from kitbash_ray.shared_budget import SHARES, shared_thresholds
from kitbash_ray.types import LayerResult

#: The evidence of the question sets that Kitbash ships with, numbers only.
SHIPPED_SAMPLES = Path(__file__).with_name("held_out.npz")
#: What each layer's evidence is.
FEATURES_OF = {"grain": FEATURES, "cartridge": FEATURES, "bitnet": TOKEN_FEATURES, "kobold": TOKEN_FEATURES}
#: The layer whose evidence has the verifier's opinion in it.
VERIFIED = "cartridge"
#: The error budgets that get a threshold of their own; one between two gets that of the stricter.
BUDGETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
FOLDS = 5
#: With fewer answers a fit says nothing, and the layer stays without a confidence.
FEWEST = 100
#: What one question weighs in a fit. Chosen on the left-out fifths, with the trees' size, on the
#: shipped sets: at equal weights ordinary questions get too low a confidence.
TRAFFIC_WEIGHT, TRAP_WEIGHT = 2.0, 0.5

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Sample(Struct, frozen=True):
    """One layer's answer to one question. `question` is a hash: the same one in several sets is one.

    `traffic`: it is of the kind that is ordinarily asked. `answerable`: a right answer exists.
    """

    question: int
    evidence: tuple[float, ...]
    right: bool
    answerable: bool
    near_miss: bool
    traffic: bool
    group: str


def sample(question: Question, said: LayerResult, *, traffic: bool, group: str, right: bool | None = None) -> Sample | None:
    """What `said` teaches; None when it has no evidence, or nobody knows whether it is right.

    `right` is for whoever can tell better than by the facts that are cited.
    """
    if said.outcome != "answered" or not said.evidence:
        return None
    right = question.right(said) if right is None else right
    if question.refused and not (said.sources and said.sources[0].fact_id == question.refused):
        return None
    return Sample(
        question_key(question.query), said.evidence, right, question.answerable, question.kind == "near_miss", traffic, group
    )


def calibrate(
    samples: dict[str, list[Sample]], exact: tuple[int, int], models: Mapping[str, str] | None = None
) -> tuple[Calibration, dict[str, Floats]]:
    """The calibration of all layers with enough samples, and the confidence of each sample by a fit that
    has not seen its question.

    `exact`: ways to ask that find another fact than their own, and all of them; `models` are the
    names of the language models behind layers 1 and 4.
    """
    fits, unseen = {}, {}
    for layer, items in samples.items():
        if len(items) >= FEWEST:
            fits[layer], unseen[layer] = fit_layer(items, layer, (models or {}).get(layer))
    if SHARES.keys() <= fits.keys():
        fits |= _together(fits, samples, unseen)
    digest = hashlib.blake2b(repr(sorted(fits.items())).encode(), digest_size=3).hexdigest()
    wrong, asked = exact
    # By the rule of succession: what was never seen to fail is not known never to.
    confidence = round(1 - (wrong + 1) / (asked + 2), 4)
    return Calibration(f"{date.today()}-{digest}", confidence, upper_bound(wrong, asked), fits, exact), unseen


def fresh(samples: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """The samples without the verifier's opinion of questions that it has learned from: of these it knows too much.

    It is 0 there, as of somebody who cannot tell.
    """
    taught, at = taught_questions(), FEATURES.index("verified")
    own = [
        replace(item, evidence=(*item.evidence[:at], 0.0, *item.evidence[at + 1 :])) if item.question in taught else item
        for item in samples.get(VERIFIED, ())
    ]
    return samples | ({VERIFIED: own} if own else {})


def unfitted() -> Calibration:
    """A calibration that knows nothing, for collecting evidence: every confidence is a half."""
    layers = {layer: LayerCalibration(features, (), 0.0, 0, 0.5, ()) for layer, features in FEATURES_OF.items()}
    return Calibration("unfitted", 1.0, 1.0, layers)


def exact_matches(index: GrainIndex, asks: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """Of pairs of a way to ask and its fact's id: how many find another fact, and how many there are."""
    every = Scope(FACTIONS)
    found = [(index.exact(ask, every), owner) for ask, owner in asks]
    return sum(grain is None or grain.source.fact_id != owner for grain, owner in found), len(found)


def fit_layer(samples: Sequence[Sample], layer: str, model: str | None = None) -> tuple[LayerCalibration, Floats]:
    """One layer's fit with its thresholds, and the confidence of each sample by a fit that has not seen its question."""
    features = FEATURES_OF[layer]
    signs = [1 if name in ALWAYS_FOR | TOKENS_FOR else -1 if name in ALWAYS_AGAINST else 0 for name in features]
    unseen = left_out(samples, signs)
    right, traffic = _column(samples, "right"), _column(samples, "traffic")
    judging = traffic if traffic.any() else np.ones(len(samples), np.bool_)
    thresholds = tuple((budget, lowest_threshold(unseen[judging], right[judging], budget)) for budget in BUDGETS)
    answerable = judging & _column(samples, "answerable")
    trees, bias = _fit(samples, signs)
    accuracy = round(float(right[answerable].mean()), 4) if answerable.any() else 0.0
    return LayerCalibration(features, trees, bias, len(samples), accuracy, thresholds, model), unseen


def _together(
    fits: dict[str, LayerCalibration], samples: dict[str, list[Sample]], unseen: dict[str, Floats]
) -> dict[str, LayerCalibration]:
    """The layers that share the error budget, with thresholds for what is ordinarily asked of them one after the other."""
    ordinary = {_place(item): None for layer in SHARES for item in samples[layer] if item.traffic}
    asked = ordinary or {_place(item): None for layer in SHARES for item in samples[layer]}
    places = {place: at for at, place in enumerate(asked)}
    confidences, right = np.full((len(SHARES), len(places)), -1.0), np.zeros((len(SHARES), len(places)), np.bool_)
    for row, layer in enumerate(SHARES):
        for item, sure in zip(samples[layer], unseen[layer].tolist(), strict=True):
            if (at := places.get(_place(item))) is not None:
                confidences[row, at], right[row, at] = sure, item.right
    found = [shared_thresholds(confidences, right, budget) for budget in BUDGETS]
    thresholds = {
        layer: tuple(zip(BUDGETS, own, strict=True)) for layer, own in zip(SHARES, zip(*found, strict=True), strict=True)
    }
    return {layer: replace(fits[layer], thresholds=thresholds[layer]) for layer in SHARES}


def _place(item: Sample) -> tuple[str, int]:
    return item.group, item.question


def left_out(samples: Sequence[Sample], signs: Sequence[int]) -> Floats:
    """Confidence of each sample by a fit that has not seen its question in any set.

    `signs` are 1 for a feature that can only speak for an answer, -1 against, 0 either way.
    """
    questions = np.array([item.question for item in samples])
    distinct, place = np.unique(questions, return_inverse=True)
    folds = np.random.RandomState(0).randint(0, FOLDS, len(distinct))[place]
    confidences = np.zeros(len(samples))
    for fold in range(FOLDS):
        trees, bias = _fit([item for item, its in zip(samples, folds, strict=True) if its != fold], signs)
        seen = LayerCalibration(("",) * len(signs), trees, bias, 0, 0.0, ())
        for at in np.flatnonzero(folds == fold).tolist():
            confidences[at] = seen.confidence(samples[at].evidence)
    return confidences


def _fit(samples: Sequence[Sample], signs: Sequence[int]) -> tuple[tuple[tuple[Node, ...], ...], float]:
    """Small, strongly regularized trees. Depth, number and leaf size were chosen on the left-out fifths."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    inputs = np.array([item.evidence for item in samples])
    right = _column(samples, "right")
    if right.all() or not right.any():  # nothing to tell apart: the rule of succession
        share = (right.sum() + 1) / (len(right) + 2)
        return (), float(np.log(share / (1 - share)))
    weights = np.where(_column(samples, "traffic"), TRAFFIC_WEIGHT, TRAP_WEIGHT)
    model = HistGradientBoostingClassifier(
        max_iter=80, max_depth=3, learning_rate=0.08, min_samples_leaf=20, l2_regularization=5.0,
        monotonic_cst=list(signs), early_stopping=False, random_state=0,
    )  # fmt: skip
    # So little work is done sooner by one thread than by several that wait for each other on a busy machine.
    with threadpool_limits(1, user_api="openmp"):
        model.fit(inputs, right, sample_weight=weights)
    trees = tuple(tuple(_node(node) for node in step[0].nodes) for step in model._predictors)
    return trees, round(float(np.ravel(model._baseline_prediction)[0]), 5)


def _node(node: Any) -> Node:
    if node["is_leaf"]:
        return (LEAF, 0.0, 0, 0, round(float(node["value"]), 5))
    return (int(node["feature_idx"]), float(node["num_threshold"]), int(node["left"]), int(node["right"]), 0.0)


def _column(samples: Sequence[Sample], name: str) -> Bools:
    return np.array([getattr(item, name) for item in samples], np.bool_)


def save_samples(samples: dict[str, list[Sample]], path: Path) -> None:
    """Write the samples of each layer: numbers and the names of their groups, no text."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for layer, items in samples.items():
        arrays[f"{layer}.evidence"] = np.array([item.evidence for item in items], np.float32)
        arrays[f"{layer}.question"] = np.array([item.question for item in items], np.int64)
        arrays[f"{layer}.group"] = np.array([item.group for item in items])
        for name in FLAGS:
            arrays[f"{layer}.{name}"] = _column(items, name)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_samples(path: Path = SHIPPED_SAMPLES) -> dict[str, list[Sample]]:
    """The inverse of `save_samples`."""
    found: dict[str, list[Sample]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for layer in sorted({name.partition(".")[0] for name in stored.files}):
            columns = {name: stored[f"{layer}.{name}"].tolist() for name in ("question", "evidence", "group", *FLAGS)}
            found[layer] = [_row(columns, at) for at in range(len(columns["question"]))]
    return found


FLAGS = ("right", "answerable", "near_miss", "traffic")


def _row(columns: dict[str, list[Any]], at: int) -> Sample:
    values = {name: column[at] for name, column in columns.items()}
    return Sample(**values | {"evidence": tuple(round(value, 4) for value in values["evidence"])})
