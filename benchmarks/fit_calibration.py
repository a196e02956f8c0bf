"""Fit kitbash_ray/calibration.json on held-out questions, and say how good it is.

The questions are those of the shipped cartridges (whose facts have ways to ask) and of the
development sets in benchmarks/data (whose facts have none, like imported ones): `dev_a` to
`dev_c` and the cartridges' own questions.jsonl are deliberately obscure, with close near-misses;
`dev_d`, and `ordinary` and `everyday` (over the shipped cartridges), are what people ordinarily ask.
Confidences that thresholds are chosen on come from five-fold cross-validation by question: no
question judges a fit that has seen it. Thresholds are point estimates, without a bound yet.
`newcomer` (over the shipped cartridges) takes no part in any of this; it judges the result.

    python -m benchmarks.fit_calibration [--write]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.common import finish, print_table
from kitbash_ray.calibration import LEAF, SHIPPED, LayerCalibration, lowest_threshold
from kitbash_ray.config import PROJECT, load_settings
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.documents import read_jsonl
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.evidence import ALWAYS_AGAINST, ALWAYS_FOR, FEATURES, judge
from kitbash_ray.knowledge.grain_index import GrainIndex, Hit, Scope, build_arrays
from kitbash_ray.knowledge.library import Library
from kitbash_ray.knowledge.retrieval import Retrieval, build_table
from kitbash_ray.knowledge.vectors import VectorStore

LAYERS = ("grain", "cartridge")
DEFAULT_BUDGET = 0.05
BUDGETS = (0.01, 0.02, DEFAULT_BUDGET, 0.1, 0.2)
FOLDS = 5
DATA = Path(__file__).with_name("data")
POOLED = "+others"
#: Ordinary questions over the shipped cartridges.
OVER_SHIPPED = ("ordinary", "everyday")
#: Never fitted, never used to choose anything: it tells how good the rest is.
JUDGE = "newcomer"
#: What people ordinarily ask: thresholds are chosen on these. The others are full of traps, which
#: teach the trees; a budget kept on them would refuse most of what is asked in good faith.
ORDINARY = frozenset({"dev_d", *OVER_SHIPPED})


@dataclass(frozen=True)
class Question:
    """A question with the facts that answer it; none: abstaining is right."""

    text: str
    expected: frozenset[str]
    kind: str


@dataclass(frozen=True)
class Knowledge:
    """Facts and held-out questions about them."""

    facts: list[Fact]
    questions: list[Question]
    with_asks: bool


@dataclass(frozen=True)
class Asked:
    """One question's best candidate in one layer, over one library."""

    group: str
    question: Question
    right: bool
    features: tuple[float, ...]


def ask_all(library: Knowledge, questions: list[tuple[str, Question]], store: VectorStore) -> dict[str, list[Asked]]:
    """The best candidate of each question, given with its group, in layers 0 and 2 over `library`."""
    index = GrainIndex(build_arrays(library.facts, store))
    vectors = store.vectors([question.text for _, question in questions])
    asked: dict[str, list[Asked]] = {layer: [] for layer in LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        build_table(library.facts, store, Path(folder) / "table")
        retrieval = Retrieval(Path(folder) / "table")
        for (group, question), vector in zip(questions, vectors, strict=True):
            found: dict[str, Sequence[Hit]] = {
                "grain": index.nearest(vector, Scope()),
                "cartridge": retrieval.search(question.text, vector, Scope()),
            }
            for layer, hits in found.items():
                best, features = judge(question.text, [hit.candidate() for hit in hits], index.rarity)
                right = hits[best].grain.source.fact_id in question.expected
                asked[layer].append(Asked(group, question, right, features))
    return asked


def exact_confidence(library: Knowledge, store: VectorStore) -> float:
    """How often a way to ask finds its own fact, by the rule of succession: (right + 1) / (asked + 2)."""
    index = GrainIndex(build_arrays(library.facts, store))
    asks = [(ask, fact.id) for fact in library.facts for ask in fact.asks]
    right = sum((found := index.exact(ask, Scope())) is not None and found.source.fact_id == owner for ask, owner in asks)
    return round((right + 1) / (len(asks) + 2), 4)


def fit(asked: list[Asked]) -> LayerCalibration:
    """Small, strongly regularized trees, to which an ordinary question counts four times as much as a trap.
    Depth, number, leaf size and that weight were chosen on the left-out fifths."""
    signs = [1 if name in ALWAYS_FOR else -1 if name in ALWAYS_AGAINST else 0 for name in FEATURES]
    inputs, right = arrays(asked)
    weights = np.array([2.0 if item.group in ORDINARY else 0.5 for item in asked])
    model = HistGradientBoostingClassifier(
        max_iter=80, max_depth=3, learning_rate=0.08, min_samples_leaf=20, l2_regularization=5.0,
        monotonic_cst=signs, early_stopping=False, random_state=0,
    ).fit(inputs, right, sample_weight=weights)  # fmt: skip
    trees = tuple(tuple(_node(node) for node in step[0].nodes) for step in model._predictors)
    bias = float(np.ravel(model._baseline_prediction)[0])
    ours = LayerCalibration(FEATURES, trees, bias, len(asked), ())
    theirs = model.predict_proba(inputs)[:, 1]
    difference = max(abs(ours.confidence(row) - p) for row, p in zip(inputs, theirs, strict=True))
    assert difference < 1e-4, f"the exported trees differ by {difference}"
    return ours


def _node(node: np.void) -> tuple[int, float, int, int, float]:
    if node["is_leaf"]:
        return (LEAF, 0.0, 0, 0, round(float(node["value"]), 5))
    return (int(node["feature_idx"]), float(node["num_threshold"]), int(node["left"]), int(node["right"]), 0.0)


def left_out(asked: list[Asked]) -> npt.NDArray[np.float64]:
    """Confidence of each answer by a fit that has not seen its question in any library."""
    texts = sorted({item.question.text for item in asked})
    fold_of = dict(zip(texts, np.random.RandomState(0).randint(0, FOLDS, len(texts)), strict=True))
    folds = [fold_of[item.question.text] for item in asked]
    confidences = np.zeros(len(asked))
    for fold in range(FOLDS):
        seen_fit = fit([item for item, its in zip(asked, folds, strict=True) if its != fold])
        for at, item in enumerate(asked):
            if folds[at] == fold:
                confidences[at] = seen_fit.confidence(item.features)
    return confidences


def arrays(asked: list[Asked]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    return np.array([item.features for item in asked]), np.array([item.right for item in asked])


def read_sets() -> dict[str, Knowledge]:
    """The development sets by name, and as `shipped` all general cartridges with their own questions."""
    sets = {}
    for folder in sorted(DATA.glob("dev_*")):
        facts = [
            Fact(f"{folder.name}:{raw['id']}", folder.name, "general", raw["text"], (), None)
            for _, raw in read_jsonl(folder / "facts.jsonl")
        ]
        questions = [
            Question(raw["query"], frozenset(f"{folder.name}:{name}" for name in raw["expected"]), raw["kind"])
            for _, raw in read_jsonl(folder / "questions.jsonl")
        ]
        sets[folder.name] = Knowledge(facts, questions, with_asks=False)
    shipped = [c for c in Library(PROJECT / "cartridges").load().cartridges if c.manifest.faction == "general"]
    questions = [Question(q.query, frozenset(q.expected), q.kind) for c in shipped for q in c.questions]
    sets["shipped"] = Knowledge([fact for c in shipped for fact in c.facts], questions, with_asks=True)
    return sets


def read_questions(name: str) -> list[Question]:
    return [
        Question(raw["query"], frozenset(raw["expected"]), raw["kind"])
        for _, raw in read_jsonl(DATA / name / "questions.jsonl")
    ]


def collect(sets: dict[str, Knowledge], store: VectorStore) -> dict[str, list[Asked]]:
    """Every question in its own library; those on facts without asks also among the facts of the other such sets."""
    runs = [(own, [(name, question) for question in own.questions]) for name, own in sets.items()]
    # Sets on the same subject stay apart: a fact of one answers some near-misses of the other.
    bare = {name: own for name, own in sets.items() if not own.with_asks and name not in ORDINARY}
    pooled = Knowledge([fact for own in bare.values() for fact in own.facts], [], with_asks=False)
    runs.append((pooled, [(name + POOLED, question) for name, own in bare.items() for question in own.questions]))
    asked_of_all = [(name, question) for name in (*OVER_SHIPPED, JUDGE) for question in read_questions(name)]
    runs.append((sets["shipped"], asked_of_all))
    asked: dict[str, list[Asked]] = {layer: [] for layer in LAYERS}
    for library, questions in runs:
        for layer, items in ask_all(library, questions, store).items():
            asked[layer] += items
    return asked


def table_rows(
    layer: str, asked: list[Asked], confidences: npt.NDArray[np.float64], thresholds: dict[str, float]
) -> list[tuple[object, ...]]:
    _, right = arrays(asked)
    answerable = np.array([bool(item.question.expected) for item in asked])
    near = np.array([item.question.kind == "near_miss" for item in asked])
    ordinary = np.array([item.group in ORDINARY for item in asked])
    judge_ = np.array([item.group == JUDGE for item in asked])
    alone = np.array([POOLED not in item.group for item in asked])
    rows = []
    for budget, threshold in thresholds.items():
        for name, chosen in (("ordinary", ordinary), ("obscure", alone & ~ordinary & ~judge_), (JUDGE, judge_)):
            accepted = chosen & (confidences >= threshold)
            error = 1 - right[accepted].mean() if accepted.any() else 0.0
            coverage = right[accepted].sum() / answerable[chosen].sum()
            caught = f"{near[accepted].sum()} of {near[chosen].sum()}"
            rows.append(
                (layer, budget, f"{threshold:.3f}", name, int(accepted.sum()), f"{error:.3f}", f"{coverage:.3f}", caught)
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace kitbash_ray/calibration.json")
    options = parser.parse_args()
    settings = load_settings()
    store = VectorStore(open_embedder(settings), settings.cache_dir)
    sets = read_sets()
    asked = collect(sets, store)
    shipped = sets["shipped"]
    result: dict[str, Any] = {
        "version": f"{date.today()}.{len(asked['grain'])}",
        "exact": exact_confidence(shipped, store),
        "layers": {},
    }
    rows, metrics = [], {"exact": result["exact"]}
    for layer in LAYERS:
        taught = [item for item in asked[layer] if item.group != JUDGE]
        judging = [item for item in asked[layer] if item.group == JUDGE]
        whole = fit(taught)
        unseen = np.array([whole.confidence(item.features) for item in judging])
        confidences = np.concatenate([left_out(taught), unseen])
        asked[layer] = taught + judging
        _, right = arrays(asked[layer])
        ordinary = np.array([item.group in ORDINARY for item in asked[layer]])
        thresholds = {str(b): lowest_threshold(confidences[ordinary], right[ordinary], b) for b in BUDGETS}
        layer_rows = table_rows(layer, asked[layer], confidences, thresholds)
        rows += layer_rows
        bins = np.clip((confidences * 10).astype(int), 0, 9)
        ece = sum(abs(confidences[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
        metrics |= {
            f"{layer}_ece": round(float(ece), 4),
        } | {
            f"{layer}_{group}_{what}": float(str(row[column]))
            for group in ("ordinary", JUDGE)
            for row in layer_rows
            if row[1] == str(DEFAULT_BUDGET) and row[3] == group
            for what, column in (("right", 6), ("error", 5))
        }
        result["layers"][layer] = {
            "features": FEATURES, "bias": round(whole.bias, 5), "questions": whole.questions,
            "thresholds": thresholds, "trees": whole.trees,
        }  # fmt: skip
    print_table(
        "Held-out questions, each in its own library",
        ("layer", "budget", "threshold", "questions", "accepted", "error", "right", "near-misses"),
        rows,
    )
    if options.write:
        SHIPPED.write_text(json.dumps(result) + "\n")
    finish("fit_calibration", metrics, {f"{layer}_ece": ("<=", 0.08) for layer in LAYERS})


if __name__ == "__main__":
    main()
