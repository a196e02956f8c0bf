"""Fit kitbash_ray/knowledge/quotes.json on SQuAD 2.0 articles: which words answer, and how sure that is.

All paragraphs of the file are passages of one library, and every question is asked of all of them.
The trees that rank candidates learn how much of the answer (SQuAD's F1) each candidate is, on the
questions that have one; the regression of the confidence learns whether the sentence quoted holds an answer, on
all questions and on rankings by trees that have not seen the question's article. What the extractor says of a
question comes from one that has not learned from its article (fit_extractor.py). Figures: benchmarks/squad2.py.

    python -m benchmarks.fit_quotes [--write]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.squad import DATA, HALVES, each_article, f1_of, mark, normalized, read_articles
from kitbash_ray.calibration import LEAF, Node
from kitbash_ray.config import load_settings
from kitbash_ray.knowledge import extractor
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.evidence import Rarity
from kitbash_ray.knowledge.extractor import Extractor, Extracts
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope, build_arrays
from kitbash_ray.knowledge.low_rank import taught
from kitbash_ray.knowledge.quotes import (
    CONFIDENCE_FEATURES,
    SHIPPED,
    Quotable,
    QuoteFit,
    Trees,
    load_quote_fit,
    quotable,
    weigh,
)
from kitbash_ray.knowledge.retrieval import Found, Retrieval, build_table
from kitbash_ray.knowledge.vectors import VectorStore

Floats = npt.NDArray[np.float64]
#: Weights of CONFIDENCE_FEATURES and what is added to them.
Line = tuple[list[float], float]

#: Wrong candidates of a question that the ranking learns from, drawn at random; right ones are all in.
WRONG_CANDIDATES = 60
#: Sizes of the trees. Those of the ranking were the first tried; smaller ones keep the file small.
RANKING = {"max_iter": 150, "max_depth": 6, "max_leaf_nodes": 24, "learning_rate": 0.08, "min_samples_leaf": 30}
#: Strength of the penalty of the expected gain, on standardized features; chosen on left-out articles (300 is worse, 3 as good).
GAIN_PENALTY = 30.0
#: What a question made to look answerable counts beside one that is, when confidence is fitted: as in
#: fit_calibration.py, whose thresholds are for what people ordinarily ask. The expected gain counts all alike.
TRAP_WEIGHT = 0.25
#: Inverse strength of the regression's L2 penalty on standardized features; the first tried.
REGULARIZATION = 0.05


@dataclass(frozen=True)
class Asked:
    """A question, what was found for it, and how much of an answer each candidate is."""

    article: str
    question: str
    gold: str
    answers: tuple[str, ...]
    found: tuple[str, ...]
    choice: Quotable
    f1: Floats
    seconds: float

    @property
    def answerable(self) -> bool:
        return bool(self.answers)


@dataclass(frozen=True)
class Said:
    """What would be said to a question: CONFIDENCE_FEATURES, SQuAD's F1, whether the sentence holds an answer,
    and whether the question was written so that none does."""

    features: tuple[float, ...]
    f1: float
    right: bool
    trap: bool


def unseen_extractors(titles: Sequence[str]) -> dict[str, Extracts]:
    """For each title an extractor that has not learned from that article: the shipped one, or one of those of a half."""
    cache_dir = load_settings().cache_dir
    seen = {path: taught(path) for path in (extractor.SHIPPED, *HALVES)}
    free = {title: [path for path, marks in seen.items() if mark(title) not in marks] for title in titles}
    if learned := [title for title, paths in free.items() if not paths]:
        raise SystemExit(
            f"Every extractor has learned from {learned}; train them anew: python -m benchmarks.fit_extractor --write"
        )
    opened = {path: Extractor(cache_dir, changes=path) for path in {paths[0] for paths in free.values()}}
    return {title: opened[paths[0]] for title, paths in free.items()}


def ask_all(articles: Sequence[dict[str, Any]], extractors: Mapping[str, Extracts]) -> tuple[list[Asked], Rarity]:
    """Every question, asked of a library of all paragraphs, and how rare a word is in it; an extractor for each title."""
    settings = load_settings()
    store = VectorStore(open_embedder(settings), settings.cache_dir)
    paragraphs = [(article["title"], paragraph) for article in articles for paragraph in article["paragraphs"]]
    facts = [
        Fact(f"squad:{number}", "squad", "general", paragraph["context"], (), None, excerpt=True)
        for number, (_, paragraph) in enumerate(paragraphs)
    ]
    index = GrainIndex(build_arrays(facts, store))
    asked = []
    with tempfile.TemporaryDirectory() as folder:
        build_table(facts, store, Path(folder) / "table")
        retrieval = Retrieval(Path(folder) / "table")
        for fact, (title, paragraph) in zip(facts, paragraphs, strict=True):
            vectors = store.vectors([entry["question"] for entry in paragraph["qas"]])
            for entry, vector in zip(paragraph["qas"], vectors, strict=True):
                began = time.perf_counter()
                found = retrieval.search(entry["question"], vector, Scope())
                seconds = time.perf_counter() - began
                choice = quotable(entry["question"], found, index.rarity, extractors[title])
                asked.append(_asked(title, entry, fact, found, choice, seconds, index))
    return asked, index.rarity


def _asked(
    title: str, entry: dict[str, Any], fact: Fact, found: list[Found], choice: Quotable, seconds: float, index: GrainIndex
) -> Asked:
    answers = () if entry["is_impossible"] else tuple(answer["text"] for answer in entry["answers"])
    golds = [normalized(answer) for answer in answers]
    f1 = np.zeros(len(choice.candidates.places))
    for number, (sentence, first, last) in enumerate(choice.candidates.places):
        passage, _, said = choice.sentences[sentence]
        if passage.grain.source.fact_id == fact.id and golds:
            words = normalized(said.text[first:last])
            f1[number] = max(f1_of(words, gold) for gold in golds)
    ids = tuple(item.grain.source.fact_id for item in found)
    return Asked(title, entry["question"], fact.id, answers, ids, choice, f1, seconds)


def say(item: Asked, spans: Trees, rarity: Rarity) -> Said:
    """What is quoted to a question by a ranking."""
    if not item.choice.candidates.places:
        return Said((0.0,) * len(CONFIDENCE_FEATURES), 0.0, False, not item.answerable)
    best, features = weigh(item.choice, spans(item.choice.features), rarity)
    passage, _, sentence = item.choice.sentences[item.choice.candidates.places[best][0]]
    holds = any(answer in sentence.text for answer in item.answers)
    return Said(features, float(item.f1[best]), holds and passage.grain.source.fact_id == item.gold, not item.answerable)


def fit_spans(asked: Sequence[Asked]) -> tuple[list[list[Node]], float]:
    """Trees that rank candidates, and their bias."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    chance = np.random.RandomState(0)
    rows, targets = [], []
    for item in asked:
        if not item.answerable:
            continue
        right, wrong = np.flatnonzero(item.f1 > 0), np.flatnonzero(item.f1 == 0)
        drawn = chance.choice(wrong, min(WRONG_CANDIDATES, len(wrong)), replace=False) if len(wrong) else wrong
        kept = np.concatenate([right, drawn])
        rows.append(item.choice.features[kept])
        targets.append(item.f1[kept])
    inputs = np.concatenate(rows)
    model = HistGradientBoostingRegressor(**RANKING, l2_regularization=5.0, early_stopping=False, random_state=0)
    return _exported(model.fit(inputs, np.concatenate(targets)))


def fit_confidence(said: Sequence[Said]) -> Line:
    """Weights and bias of the log-odds that the sentence quoted holds an answer."""
    from sklearn.linear_model import LogisticRegression

    scaled, mean, spread = _scaled(said)
    model = LogisticRegression(C=REGULARIZATION, max_iter=1000)
    weights = [TRAP_WEIGHT if item.trap else 1.0 for item in said]
    model.fit(scaled, [item.right for item in said], sample_weight=weights)
    return _line(model.coef_[0] / spread, float(model.intercept_[0]), mean)


def _scaled(said: Sequence[Said]) -> tuple[Floats, Floats, Floats]:
    features = np.array([item.features for item in said])
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    return (features - mean) / spread, mean, spread


def _line(weights: Floats, intercept: float, mean: Floats) -> Line:
    return [round(float(weight), 6) for weight in weights], round(intercept - float(weights @ mean), 6)


def _exported(model: Any) -> tuple[list[list[Node]], float]:
    trees = [[_node(node) for node in step[0].nodes] for step in model._predictors]
    return trees, round(float(np.ravel(model._baseline_prediction)[0]), 5)


def _node(node: np.void) -> Node:
    if node["is_leaf"]:
        return (LEAF, 0.0, 0, 0, float(f"{node['value']:.4g}"))
    return (int(node["feature_idx"]), float(f"{node['num_threshold']:.6g}"), int(node["left"]), int(node["right"]), 0.0)


def left_out(asked: Sequence[Asked], rarity: Rarity, folds: dict[str, int]) -> list[Said]:
    """What is said to each question by a ranking that has seen no article of its fold."""
    said: dict[int, Said] = {}
    for fold in sorted(set(folds.values())):
        spans = Trees(*fit_spans([item for item in asked if folds[item.article] != fold]))
        said |= {at: say(item, spans, rarity) for at, item in enumerate(asked) if folds[item.article] == fold}
    return [said[at] for at in range(len(asked))]


def fit_gain(asked: Sequence[Asked], said: Sequence[Said]) -> Line:
    """Weights and bias of the F1 that answering gains over abstaining: the answer's own, or -1 where there is none."""
    from sklearn.linear_model import Ridge

    scaled, mean, spread = _scaled(said)
    gains = [own.f1 if item.answerable else -1.0 for item, own in zip(asked, said, strict=True)]
    model = Ridge(alpha=GAIN_PENALTY).fit(scaled, gains)
    return _line(model.coef_ / spread, float(model.intercept_), mean)


def unseen(asked: Sequence[Asked], said: Sequence[Said], folds: dict[str, int]) -> tuple[Floats, Floats]:
    """For each answer the log-odds that it is right and the gain expected, by fits that have seen no article of its fold."""
    which = np.array([folds[item.article] for item in asked])
    features = np.array([item.features for item in said])
    odds, gains = np.zeros(len(asked)), np.zeros(len(asked))
    for fold in set(folds.values()):
        others, own = np.flatnonzero(which != fold).tolist(), which == fold
        those = [said[at] for at in others]
        for line, found in ((fit_confidence(those), odds), (fit_gain([asked[at] for at in others], those), gains)):
            found[own] = features[own] @ np.array(line[0]) + line[1]
    return odds, gains


def shipped() -> tuple[dict[str, Any], QuoteFit]:
    """The shipped fit with what it remembers."""
    return json.loads(SHIPPED.read_text()), load_quote_fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace kitbash_ray/knowledge/quotes.json")
    options = parser.parse_args()
    articles = read_articles()
    if not articles:
        print(f"Nothing to fit on: there is no squad2*.json in {DATA}.")
        return
    titles = [article["title"] for article in articles]
    asked, rarity = ask_all(articles, unseen_extractors(titles))
    said = left_out(asked, rarity, each_article(titles))
    spans, bias = fit_spans(asked)
    lines = {"confidence": fit_confidence(said), "gain": fit_gain(asked, said)}
    result = {
        "seen": sorted({mark(item.article) for item in asked}),
        "spans": {"bias": bias, "trees": spans},
    } | {name: {"bias": its_bias, "weights": weights} for name, (weights, its_bias) in lines.items()}
    if options.write:
        SHIPPED.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    right = np.mean([item.right for item in said])
    answerable = np.mean([item.answerable for item in asked])
    print(f"{len(asked)} questions, {answerable:.3f} answerable; quoted rightly by left-out rankings: {right:.3f}")


if __name__ == "__main__":
    main()
