"""SQuAD 2.0 for benchmarks: its articles, how they are told apart, and its score.

The data is not in the repository: KITBASH_BENCH_DATA names its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kitbash_ray.config import PROJECT

DATA = Path(os.environ.get("KITBASH_BENCH_DATA", PROJECT.parent / "shared" / "data"))

#: What extractors learned from every second article.
HALVES = tuple(Path(__file__).with_name("data") / "extractors" / f"half_{number}.npz" for number in (0, 1))


def read_articles(*, few: bool = False) -> list[dict[str, Any]]:
    """The articles of every squad2*.json in DATA; with `few`, of each paragraph the first question and the last.

    Those that have no answer stand last.
    """
    articles = [article for path in sorted(DATA.glob("squad2*.json")) for article in json.loads(path.read_text())["data"]]
    for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
        if few and len(paragraph["qas"]) > 2:
            paragraph["qas"] = [paragraph["qas"][0], paragraph["qas"][-1]]
    return articles


def normalized(text: str) -> list[str]:
    """The words that SQuAD's official score compares."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1_of(words: Sequence[str], answer: Sequence[str]) -> float:
    """SQuAD's F1 of two lists of normalized words."""
    if not words or not answer:
        return float(list(words) == list(answer))
    return 2 * sum((Counter(words) & Counter(answer)).values()) / (len(words) + len(answer))


def each_article(titles: Iterable[str], folds: int | None = None) -> dict[str, int]:
    """A fold for each article, or for every `folds`-th of them."""
    different = sorted(set(titles))
    return {title: number % (folds or len(different)) for number, title in enumerate(different)}


def mark(title: str) -> int:
    """What a fit remembers of an article that it has seen."""
    return int.from_bytes(hashlib.blake2b(title.encode(), digest_size=4).digest(), "big")
