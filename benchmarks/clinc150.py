"""CLINC150 as frequently asked questions: each intent is a grain, its train utterances are that grain's asks.

Asked through layer 0 itself (GrainLayer over the arrays of an index): `val` has the questions with
an answer, `oos_val` those without. What layer 0 learns it learns from the asks alone; neither `val`
nor an out-of-scope question is fitted on, except for the error budgets, whose thresholds are chosen
on one half of `val` and `oos_val` and judged on the other. Beside it, over the same vectors: the
single nearest ask, and semantic-router's score (1.1.1, `IndexedRouter` over `LocalIndex` with its
defaults: the five nearest utterances of all, a route scores the mean of those of them that are its).
Times are of one question after the other, embedding included.

    python -m benchmarks.clinc150 [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from benchmarks.common import finish, percentile, print_table
from kitbash_ray.bounds import lowest_threshold
from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import BENCHMARK_DATA, PROJECT, load_settings
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.grain_index import GrainIndex, build_arrays
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.types import Query

NAME = "clinc150"
DATA = Path(os.environ.get(BENCHMARK_DATA, PROJECT.parent / "shared" / "data")) / "clinc150_train_val.json"
TARGETS = {"accuracy_in_scope": (">=", 0.93), "auroc_out_of_scope": (">=", 0.94), "ms_per_query": ("<=", 3.0)}
#: google/uncertainty-baselines, on the test set; both fine-tune BERT.
PEERS = (("BERT, fine-tuned", 0.965, 0.942), ("SNGP, ensemble", 0.974, 0.973))
DELTAS = (0.01, 0.02, 0.05, 0.10)
#: Asks a grain; the whole set has 100.
FEWER = (3, 5, 10, 30)
TOP_K = 5

Utterances = list[tuple[str, str]]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """What came back: the intents, how sure each is, and which intent was meant (empty: none)."""

    meant: list[str]
    said: list[str]
    confidence: npt.NDArray[np.float64]
    ms: float = 0.0

    @property
    def answerable(self) -> npt.NDArray[np.bool_]:
        return np.array([bool(meant) for meant in self.meant])

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.array([said == meant for said, meant in zip(self.said, self.meant, strict=True)])

    def accuracy(self) -> float:
        return float(self.right[self.answerable].mean())

    def auroc(self) -> float:
        return float(roc_auc_score(self.answerable, self.confidence))


@cache
def load() -> dict[str, Utterances]:
    """The parts of CLINC150; out of scope is the empty intent."""
    raw = json.loads(DATA.read_text())
    return {part: [(text, "" if intent == "oos" else intent) for text, intent in rows] for part, rows in raw.items()}


@cache
def open_store() -> VectorStore:
    settings = load_settings()
    return VectorStore(open_embedder(settings), settings.cache_dir)


def train(asks: int) -> Utterances:
    """That many utterances of each intent, by chance."""
    rows = load()["train"]
    taken: dict[str, int] = {}
    kept = []
    for at in np.random.RandomState(0).permutation(len(rows)):
        text, intent = rows[at]
        taken[intent] = taken.get(intent, 0) + 1
        if taken[intent] <= asks:
            kept.append((text, intent))
    return kept


def build(rows: Utterances) -> tuple[GrainIndex, float]:
    """The index over them as facts, and the seconds that it took once the vectors are there."""
    asks: dict[str, list[str]] = {}
    for text, intent in rows:
        asks.setdefault(intent, []).append(text)
    open_store().vectors([text for text, _ in rows])
    begun = time.perf_counter()
    facts = [Fact(f"faq:{name}", "faq", "general", name.replace("_", " "), tuple(texts), None) for name, texts in asks.items()]
    return GrainIndex(build_arrays(facts, open_store())), time.perf_counter() - begun


def ask(index: GrainIndex, questions: Utterances) -> Asked:
    """Each question through layer 0; where it abstains by itself, it is not sure at all."""
    layer = GrainLayer(index, open_store().embedder, load_calibration())

    async def ask_all() -> Asked:
        said, sure, times = [], [], []
        for text, _ in questions:
            begun = time.perf_counter()
            result = await layer.answer(Query(text))
            times.append((time.perf_counter() - begun) * 1000)
            said.append(result.sources[0].fact_id.removeprefix("faq:") if result.sources else "")
            sure.append(result.confidence or 0.0)
        return Asked([intent for _, intent in questions], said, np.array(sure), percentile(times, 0.5))

    return asyncio.run(ask_all())


def embedding_ms(questions: Utterances) -> float:
    """The median time that the embedding of one question takes."""
    times = []
    for text, _ in questions[:200]:
        begun = time.perf_counter()
        open_store().embedder.embed([text])
        times.append((time.perf_counter() - begun) * 1000)
    return percentile(times, 0.5)


def by_vectors(rows: Utterances, questions: Utterances, *, routed: bool) -> Asked:
    """The same questions by the nearest ask alone, or `routed` as semantic-router does it."""
    store = open_store()
    asks = store.vectors([text for text, _ in rows])
    said, sure = [], []
    for vector in store.vectors([text for text, _ in questions]):
        cosines = asks @ vector
        if routed:
            name, score = _route(cosines, rows)
        else:
            name, score = rows[int(cosines.argmax())][1], float(cosines.max())
        said.append(name)
        sure.append(score)
    return Asked([intent for _, intent in questions], said, np.array(sure))


def _route(cosines: Vectors, rows: Utterances) -> tuple[str, float]:
    hits: dict[str, list[float]] = {}
    for at in np.argpartition(cosines, -TOP_K)[-TOP_K:]:
        hits.setdefault(rows[at][1], []).append(float(cosines[at]))
    means = {name: float(np.mean(each)) for name, each in hits.items()}
    best = max(means, key=means.__getitem__)
    return best, means[best]


def held_out() -> Utterances:
    return load()["val"] + load()["oos_val"]


@cache
def answered() -> Asked:
    """All of `val` and `oos_val` asked of the index over all of `train`."""
    return ask(build(train(100))[0], held_out())


def budget_cells() -> list[tuple[str, float, int, float, float]]:
    """(benchmark, delta, accepted, observed error, coverage) on the half that chose no threshold.

    Coverage is the share of all its questions, also of those without an answer. No rows without the data.
    """
    return cells_of(answered()) if DATA.is_file() else []


def cells_of(asked: Asked) -> list[tuple[str, float, int, float, float]]:
    half = np.random.RandomState(0).permutation(len(asked.meant)) % 2 == 0
    cells = []
    for delta in DELTAS:
        threshold = lowest_threshold(asked.confidence[half], asked.right[half], delta)
        taken = asked.confidence[~half] >= threshold.value if threshold.proven else np.zeros((~half).sum(), bool)
        wrong = float((~asked.right[~half][taken]).mean()) if taken.any() else 0.0
        cells.append((NAME, delta, int(taken.sum()), round(wrong, 4), round(float(taken.mean()), 4)))
    return cells


def figures(asked: Asked) -> tuple[str, ...]:
    """Accuracy, AUROC of in scope against out, and of right against wrong."""
    return f"{asked.accuracy():.3f}", f"{asked.auroc():.3f}", f"{roc_auc_score(asked.right, asked.confidence):.3f}"


def compare(sizes: Sequence[int], questions: Utterances) -> list[tuple[object, ...]]:
    """A row for each number of asks a grain, from layer 0 and from the two other ways."""
    rows: list[tuple[object, ...]] = []
    for size in sizes:
        index, seconds = build(train(size))
        asked = ask(index, questions)
        rows.append((size, "layer 0", *figures(asked), f"{asked.ms:.2f}", f"{seconds:.1f}"))
        for name, routed in (("nearest ask", False), ("semantic-router's score", True)):
            rows.append((size, name, *figures(by_vectors(train(size), questions, routed=routed)), "", ""))
    return rows


def trusted(asked: Asked, budget: float) -> tuple[float, float]:
    """Error and coverage of the answerable at the threshold that ships for this budget."""
    taken = asked.confidence >= load_calibration().enough("grain", budget)
    return float((~asked.right[taken]).mean()), float((taken & asked.right).sum() / asked.answerable.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="all asks only, not also 3 to 30 a grain")
    sizes = () if parser.parse_args().quick else FEWER
    if not DATA.is_file():
        print(f"Skipped: there is no {DATA.name} in {DATA.parent}; set {BENCHMARK_DATA} to its folder.")
        return
    questions = held_out()
    rows = compare(sizes, questions)
    asked = answered()
    rows.append((100, "layer 0", *figures(asked), f"{asked.ms:.2f}", ""))
    for name, routed in (("nearest ask", False), ("semantic-router's score", True)):
        rows.append((100, name, *figures(by_vectors(train(100), questions, routed=routed)), "", ""))
    rows += [(100, name + " (published)", accuracy, auroc, "", "", "") for name, accuracy, auroc in PEERS]
    columns = ("asks a grain", "how", "accuracy in scope", "AUROC out of scope", "AUROC right", "ms", "build s")
    print_table(f"{len(load()['val'])} questions in scope, {len(load()['oos_val'])} out of it", columns, rows)
    cells = cells_of(asked)
    print_table("Error budgets", ("benchmark", "delta", "accepted", "error", "coverage"), cells)
    error, coverage = trusted(asked, 0.05)
    metrics = {
        "accuracy_in_scope": round(asked.accuracy(), 4),
        "auroc_out_of_scope": round(asked.auroc(), 4),
        "ms_per_query": round(asked.ms, 3),
        "ms_embedding": round(embedding_ms(questions), 3),
        "error_at_shipped_threshold": round(error, 4),
        "answered_at_shipped_threshold": round(coverage, 4),
    }
    metrics |= {f"error_budget_{delta}": observed for _, delta, _, observed, _ in cells}
    finish(NAME, metrics, TARGETS)


if __name__ == "__main__":
    main()
