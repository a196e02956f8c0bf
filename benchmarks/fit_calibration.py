"""Fit kitbash_ray/calibration.json on held-out questions, and say how good it is.

The questions are those of the shipped cartridges (whose facts have ways to ask) and of the
development sets in benchmarks/data (whose facts have none, like imported ones). Confidences
that thresholds are chosen on come from leave-one-set-out fits: no question judges a fit that
saw it.

    python -m benchmarks.fit_calibration [--write]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.common import finish, print_table
from kitbash_ray.calibration import LEAF, SHIPPED, LayerCalibration, lowest_threshold
from kitbash_ray.config import PROJECT, load_settings
from kitbash_ray.knowledge.cartridge import Fact, load_cartridge
from kitbash_ray.knowledge.documents import read_jsonl
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.evidence import ALWAYS_AGAINST, ALWAYS_FOR, FEATURES, judge
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope, build_arrays
from kitbash_ray.knowledge.retrieval import Retrieval, build_table
from kitbash_ray.knowledge.vectors import VectorStore

DEFAULT_BUDGET = 0.05
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2)
DATA = Path(__file__).with_name("data")


@dataclass
class Asked:
    """One question's best candidate in one layer."""

    group: str
    kind: str
    answerable: bool
    right: bool
    features: tuple[float, ...]


def dev_set(folder: Path) -> tuple[list[Fact], list[tuple[str, frozenset[str], str]]]:
    facts = [
        Fact(f"{folder.name}:{raw['id']}", folder.name, "general", raw["text"], (), None)
        for _, raw in read_jsonl(folder / "facts.jsonl")
    ]
    questions = [
        (raw["query"], frozenset(f"{folder.name}:{name}" for name in raw["expected"]), raw["kind"])
        for _, raw in read_jsonl(folder / "questions.jsonl")
    ]
    return facts, questions


def ask_all(
    name: str, facts: list[Fact], questions: list[tuple[str, frozenset[str], str]], store: VectorStore
) -> dict[str, list[Asked]]:
    index = GrainIndex(build_arrays(facts, store))
    vectors = store.vectors([query for query, _, _ in questions])
    asked: dict[str, list[Asked]] = {"grain": [], "cartridge": []}
    with tempfile.TemporaryDirectory() as folder:
        build_table(facts, store, Path(folder) / "table")
        retrieval = Retrieval(Path(folder) / "table")
        for (query, expected, kind), vector in zip(questions, vectors, strict=True):
            found = {
                "grain": index.nearest(vector, Scope()),
                "cartridge": [(f.grain, f.nearest, f.cosine) for f in retrieval.search(query, vector, Scope())],
            }
            for layer, grains in found.items():
                candidates = [grain.candidate(nearest, cosine) for grain, nearest, cosine in grains]
                best, features = judge(query, candidates, index.rarity)
                right = grains[best][0].source.fact_id in expected
                asked[layer].append(Asked(name, kind, bool(expected), right, features))
    return asked


def fit(inputs: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> LayerCalibration:
    """Small, strongly regularized trees; their number and depth were chosen on the left-out sets."""
    signs = [1 if name in ALWAYS_FOR else -1 if name in ALWAYS_AGAINST else 0 for name in FEATURES]
    model = HistGradientBoostingClassifier(
        max_iter=80, max_depth=3, learning_rate=0.08, min_samples_leaf=15, l2_regularization=5.0,
        monotonic_cst=signs, early_stopping=False, random_state=0,
    ).fit(inputs, right)  # fmt: skip
    trees = tuple(tuple(_node(node) for node in step[0].nodes) for step in model._predictors)
    bias = float(np.ravel(model._baseline_prediction)[0])
    ours = LayerCalibration(FEATURES, trees, bias, len(right), ())
    difference = max(abs(ours.confidence(row) - p) for row, p in zip(inputs, model.predict_proba(inputs)[:, 1], strict=True))
    assert difference < 1e-4, f"the exported trees differ by {difference}"
    return ours


def _node(node: np.void) -> tuple[int, float, int, int, float]:
    if node["is_leaf"]:
        return (LEAF, 0.0, 0, 0, round(float(node["value"]), 5))
    return (int(node["feature_idx"]), float(node["num_threshold"]), int(node["left"]), int(node["right"]), 0.0)


def left_out(asked: list[Asked]) -> npt.NDArray[np.float64]:
    """Confidence of each answer by a fit that saw nothing of its set, alone or among others."""
    inputs, right = arrays(asked)
    families = np.array([item.group.split("+")[0] for item in asked])
    confidences = np.zeros(len(asked))
    for family in set(families):
        unseen = families == family
        seen_fit = fit(inputs[~unseen], right[~unseen])
        confidences[unseen] = [seen_fit.confidence(row) for row in inputs[unseen]]
    return confidences


def arrays(asked: list[Asked]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    return np.array([item.features for item in asked]), np.array([item.right for item in asked])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace kitbash_ray/calibration.json")
    options = parser.parse_args()
    settings = load_settings()
    store = VectorStore(open_embedder(settings), settings.cache_dir)

    sets = {folder.name: dev_set(folder) for folder in sorted(DATA.glob("dev_*"))}
    for folder in sorted((PROJECT / "cartridges").iterdir()):
        cartridge = load_cartridge(folder)
        questions = [(q.query, frozenset(q.expected), q.kind) for q in cartridge.questions]
        sets[folder.name] = list(cartridge.facts), questions
    # Alone, and among others: a question meets small libraries and large ones. Development sets
    # and cartridges stay apart, because facts of one answer some near-misses of the other.
    dev = [fact for name, (facts, _) in sets.items() if name.startswith("dev_") for fact in facts]
    own = [fact for name, (facts, _) in sets.items() if not name.startswith("dev_") for fact in facts]

    asked: dict[str, list[Asked]] = {"grain": [], "cartridge": []}
    for name, (facts, questions) in sets.items():
        for group, library in ((name, facts), (f"{name}+all", dev if name.startswith("dev_") else own)):
            for layer, items in ask_all(group, library, questions, store).items():
                asked[layer] += items

    result = {"version": "", "exact": 0.0, "layers": {}}
    asks = sum(len(fact.asks) for fact in own)
    result["exact"] = round((asks + 1) / (asks + 2), 4)
    rows, metrics = [], {}
    for layer in ("grain", "cartridge"):
        confidences = left_out(asked[layer])
        inputs, right = arrays(asked[layer])
        whole = fit(inputs, right)
        answerable = np.array([item.answerable for item in asked[layer]])
        near = np.array([item.kind == "near_miss" for item in asked[layer]])
        thresholds = {}
        kept = 0.0
        for budget in BUDGETS:
            threshold = lowest_threshold(confidences, right, budget)
            accepted = confidences >= threshold
            thresholds[str(budget)] = threshold  # not rounded: it is a confidence that was accepted
            if budget == DEFAULT_BUDGET:
                kept = float(right[accepted].sum() / answerable.sum())
            rows.append(
                (layer, budget, f"{threshold:.3f}", int(accepted.sum()), f"{1 - right[accepted].mean() if accepted.any() else 0:.3f}",
                 f"{right[accepted].sum() / answerable.sum():.3f}", f"{near[accepted].sum()} of {near.sum()}")
            )  # fmt: skip
        bins = np.clip((confidences * 10).astype(int), 0, 9)
        ece = sum(abs(confidences[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
        metrics |= {f"{layer}_ece": round(float(ece), 4), f"{layer}_right": round(kept, 4)}
        result["layers"][layer] = {
            "features": list(FEATURES), "bias": round(whole.bias, 5), "questions": len(right), "thresholds": thresholds,
            "trees": whole.trees,
        }  # fmt: skip
    result["version"] = f"2026-11-21.{len(asked['grain'])}"
    print_table("Held-out questions", ("layer", "budget", "threshold", "accepted", "error", "right", "near-misses"), rows)
    if options.write:
        SHIPPED.write_text(json.dumps(result) + "\n")
    finish("fit_calibration", metrics, {"grain_ece": ("<=", 0.08), "cartridge_ece": ("<=", 0.08)})


if __name__ == "__main__":
    main()
