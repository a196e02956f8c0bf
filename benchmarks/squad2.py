"""Does layer 2 find, quote and abstain rightly over documents: SQuAD 2.0 as open retrieval.

All paragraphs are passages of one library; every question is asked of all of them, and more than
half cannot be answered from the paragraph they were written for. No language model takes part.
An article is judged by fits that have not seen it: the shipped ones where that is so, else by an extractor
that learned from every second article (fit_extractor.py) and by trees fitted here on the other articles. The
confidence learns from rankings that have not seen the question's own article either, but may have seen the
article that is judged.

    python -m benchmarks.squad2 [--quick]
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import finish, percentile, print_table
from benchmarks.fit_quotes import Asked, Floats, Said, ask_all, left_out, say, shipped, unseen, unseen_extractors
from benchmarks.squad import DATA, each_article, mark, read_articles
from kitbash_ray.bounds import lowest_threshold
from kitbash_ray.knowledge.evidence import Rarity
from kitbash_ray.knowledge.text import read

NAME = "squad2"
TARGETS = {"recall_at_5": (">=", 0.90), "f1_answer_or_abstain": (">=", 58.0)}
DELTAS = (0.01, 0.02, 0.05, 0.10)
#: The best entry of SQuAD 2.0's own leaderboard, which is given the right paragraph: another, easier task.
LEADERBOARD_F1 = 93.2
#: Folds of a quick run, instead of one for each article.
QUICK_FOLDS = 2

Cell = tuple[str, float, int, float, float]


def asked_of_unseen(articles: Sequence[dict[str, Any]]) -> tuple[list[Asked], Rarity]:
    """Every question with what is found for it, read by extractors that have not learned from its article."""
    return ask_all(articles, unseen_extractors([article["title"] for article in articles]))


def judged(asked: Sequence[Asked], rarity: Rarity, folds: int | None = None) -> tuple[list[Said], Floats, Floats]:
    """What is said to each question, the log-odds that it is right, and the F1 that answering is expected to gain."""
    raw, fit = shipped()
    known = np.array([mark(item.article) in raw["seen"] for item in asked])
    said: list[Said] = [say(item, fit.spans, rarity) for item in asked]
    features = np.array([item.features for item in said])
    odds, gains = (features @ np.array(raw[name]["weights"]) + raw[name]["bias"] for name in ("confidence", "gain"))
    if known.any():
        old = [item for item, its in zip(asked, known, strict=True) if its]
        fold_of = each_article((item.article for item in old), folds)
        again = left_out(old, rarity, fold_of)
        odds[known], gains[known] = unseen(old, again, fold_of)
        for at, own in zip(np.flatnonzero(known), again, strict=True):
            said[at] = own
    return said, odds, gains


def f1(asked: Sequence[Asked], said: Sequence[Said], answered: npt.NDArray[np.bool_]) -> float:
    """SQuAD's F1 over all questions: one without an answer counts fully when it is not answered."""
    each = [own.f1 * its if item.answerable else float(not its) for item, own, its in zip(asked, said, answered, strict=True)]
    return round(100 * float(np.mean(each)), 2)


def recall(asked: Sequence[Asked], first: int) -> float:
    return round(float(np.mean([item.gold in item.found[:first] for item in asked if item.answerable])), 4)


def bm25_recall(articles: Sequence[dict[str, Any]], first: int) -> float:
    """The same of BM25 alone over stems, with the usual constants 1.2 and 0.75."""
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    texts = [Counter(read(paragraph["context"]).content) for paragraph in paragraphs]
    lengths = np.array([sum(text.values()) for text in texts])
    counts = Counter(stem for text in texts for stem in text)
    scale = 1.2 * (0.25 + 0.75 * lengths / lengths.mean())
    hits = []
    for gold, paragraph in enumerate(paragraphs):
        for entry in paragraph["qas"]:
            if entry["is_impossible"]:
                continue
            scores = np.zeros(len(texts))
            for stem in set(read(entry["question"]).content):
                often = np.array([text[stem] for text in texts])
                rare = math.log(1 + (len(texts) - counts[stem] + 0.5) / (counts[stem] + 0.5))
                scores += rare * often * 2.2 / (often + scale)
            hits.append(int((scores > scores[gold]).sum()) < first)
    return round(float(np.mean(hits)), 4)


def cells(asked: Sequence[Asked], said: Sequence[Said], odds: Floats) -> list[Cell]:
    """Thresholds fitted on one half of the articles, judged on the other, both ways round and added up."""
    confidences = 1 / (1 + np.exp(-odds))
    right = np.array([own.right for own in said])
    half = np.array([number % 2 for number in _numbers(asked)])
    rows = []
    for delta in DELTAS:
        accepted = np.zeros(len(asked), bool)
        for part in (0, 1):
            limit = lowest_threshold(confidences[half == part], right[half == part], delta)
            accepted |= (half != part) & (confidences >= limit.value) & limit.proven
        error = float(1 - right[accepted].mean()) if accepted.any() else 0.0
        rows.append((NAME, delta, int(accepted.sum()), round(error, 4), round(float(accepted.mean()), 4)))
    return rows


def _numbers(asked: Sequence[Asked]) -> list[int]:
    numbers = each_article(item.article for item in asked)
    return [numbers[item.article] for item in asked]


def budget_cells() -> list[Cell]:
    """(benchmark, delta, accepted, observed error, coverage): wrong is a sentence without the answer; [] without data."""
    articles = read_articles()
    if not articles:
        return []
    asked, rarity = asked_of_unseen(articles)
    said, odds, _ = judged(asked, rarity)
    return cells(asked, said, odds)


def report(asked: Sequence[Asked], said: Sequence[Said], odds: Floats, gains: Floats) -> dict[str, float]:
    """Print the tables; the metrics."""
    answerable = np.array([item.answerable for item in asked])
    answered = gains > 0
    f1_each = np.array([own.f1 for own in said])
    none, every = np.zeros(len(asked), bool), np.ones(len(asked), bool)
    right = np.array([own.right for own in said])
    possible = np.array([max(item.f1, default=0.0) for item in asked])
    rows = [
        ("Kitbash, answer or abstain", f1(asked, said, answered), int(answered.sum())),
        ("always abstaining", f1(asked, said, none), 0),
        ("always answering", f1(asked, said, every), len(asked)),
        ("the same words, told which questions have an answer", f1(asked, said, answerable), int(answerable.sum())),
        ("the best words of the five sentences, told as well",
         round(100 * float(np.where(answerable, possible, 1.0).mean()), 2), int(answerable.sum())),
        ("best on the leaderboard, given the paragraph (another task)", LEADERBOARD_F1, "-"),
    ]  # fmt: skip
    print_table(f"{len(asked)} questions, {int(answerable.sum())} with an answer", ("who", "F1", "answered"), rows)
    budget = cells(asked, said, odds)
    print_table("Error budgets", ("benchmark", "budget", "accepted", "error", "coverage"), budget)
    milliseconds = [1000 * item.seconds for item in asked]
    return {
        "recall_at_1": recall(asked, 1), "recall_at_5": recall(asked, 5), "recall_at_8": recall(asked, 8),
        "f1_answer_or_abstain": f1(asked, said, answered), "f1_always_abstaining": f1(asked, said, none),
        "f1_of_words": round(100 * float(f1_each[answerable].mean()), 2),
        "right_sentence": round(float(right[answerable].mean()), 4), "answered": int(answered.sum()),
        "search_ms_p50": round(percentile(milliseconds, 0.5), 2), "search_ms_p95": round(percentile(milliseconds, 0.95), 2),
    } | {f"{name}_{delta}": value for _, delta, _, error, coverage in budget
         for name, value in (("error", error), ("coverage", coverage))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="two questions of a paragraph, two folds instead of one an article"
    )
    quick = parser.parse_args().quick
    articles = read_articles(few=quick)
    if not articles:
        print(f"Skipped: there is no squad2*.json in {DATA}; KITBASH_BENCH_DATA names the folder.")
        return
    asked, rarity = asked_of_unseen(articles)
    metrics = report(asked, *judged(asked, rarity, QUICK_FOLDS if quick else None))
    peers = {f"bm25_recall_at_{first}": bm25_recall(articles, first) for first in (1, 5)}
    rows = [("Kitbash", metrics["recall_at_1"], metrics["recall_at_5"]), ("BM25 alone", *peers.values())]
    print_table("The right paragraph among the first", ("who", "one", "five"), rows)
    metrics |= peers
    finish(NAME, metrics, TARGETS)


if __name__ == "__main__":
    main()
