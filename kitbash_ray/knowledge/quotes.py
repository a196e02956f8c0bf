"""What a passage says to a question: the sentence that answers, and the words in it.

The sentences of the passages found are put in order by cosine and shared words; of the best few,
boosted trees rank the runs of words (spans.py), and a logistic regression says how probable it is that
the sentence answers. Both are fitted on questions that people asked about encyclopedic text (benchmarks/fit_quotes.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kitbash_ray.calibration import LEAF, Node
from kitbash_ray.knowledge.evidence import Rarity
from kitbash_ray.knowledge.retrieval import Found
from kitbash_ray.knowledge.spans import Candidates, Sentence, candidates
from kitbash_ray.knowledge.text import Words, opposites, read

SHIPPED = Path(__file__).with_name("quotes.json")
#: Sentences that are looked at; nine in ten questions have their answer in one of five, and each takes a millisecond.
MOST_SENTENCES = 5
#: Characters before a sentence in which the question's words count a little for it as well.
BEFORE_CHARS = 300

Floats = npt.NDArray[np.float64]

CONFIDENCE_FEATURES = (
    "span", "over_other_sentence", "over_other_passage", "five_best", "sum", "sentence_lead", "sentence_score", "cosine",
    "coverage", "uncovered", "uncovered_words", "passage_score", "passage_lead", "next_passage", "sixth_passage",
    "passage_coverage", "passage_uncovered", "passage_uncovered_words", "numbers_differ", "numbers_differ_in_passage",
    "negation_differs", "negated", "names_differ", "names_differ_in_passage", "names", "opposite", "opposite_in_passage",
    "content_words", "words",
)  # fmt: skip


class Trees:
    """Boosted trees over many rows at once; each row goes left where its feature is at or below the threshold."""

    def __init__(self, trees: Sequence[Sequence[Node]], bias: float) -> None:
        most = max((len(tree) for tree in trees), default=1)
        nodes = np.zeros((len(trees), most, 5))
        nodes[:, :, 0] = LEAF
        for number, tree in enumerate(trees):
            nodes[number, : len(tree)] = tree
        self._feature, self._left, self._right = (nodes[:, :, part].astype(np.intp).ravel() for part in (0, 2, 3))
        self._threshold, self._value = nodes[:, :, 1].ravel(), nodes[:, :, 4].ravel()
        self._roots = np.arange(len(trees)) * most
        self._bias = bias

    def __call__(self, rows: Floats) -> Floats:
        """The sum of the leaves that each row leads to, and the bias."""
        at = np.broadcast_to(self._roots, (len(rows), len(self._roots)))
        number = np.arange(len(rows))[:, None]
        while (feature := self._feature[at]).max(initial=LEAF) != LEAF:
            goes_left = rows[number, np.maximum(feature, 0)] <= self._threshold[at]
            onward = self._roots + np.where(goes_left, self._left[at], self._right[at])
            at = np.where(feature == LEAF, at, onward)
        found: Floats = self._value[at].sum(axis=1) + self._bias
        return found


@dataclass(frozen=True, slots=True)
class QuoteFit:
    """`spans` says how much of the answer a candidate is; `weights` and `bias` make the log-odds that its sentence answers."""

    spans: Trees
    weights: tuple[float, ...]
    bias: float

    def log_odds(self, features: Sequence[float]) -> float:
        """Of CONFIDENCE_FEATURES."""
        return self.bias + sum(weight * value for weight, value in zip(self.weights, features, strict=True))


@dataclass(frozen=True, slots=True)
class Quote:
    """Sentence `start` to `end` of the passage `found`, in it the words `first` to `last`, and how sure that is."""

    found: Found
    start: int
    end: int
    first: int
    last: int
    confidence: float

    @property
    def sentence(self) -> str:
        return self.found.grain.source.text[self.start : self.end]

    @property
    def words(self) -> str:
        return self.found.grain.source.text[self.first : self.last]


@dataclass(frozen=True, slots=True)
class Quotable:
    """The best sentences of the passages found, each with its passage and where it begins, and the candidates in them."""

    question: str
    passages: Sequence[Found]
    sentences: list[tuple[Found, int, Sentence]]
    candidates: Candidates


@cache
def load_quote_fit(path: Path = SHIPPED) -> QuoteFit:
    """The fit in `path`; the one that ships with Kitbash by default."""
    raw = json.loads(path.read_text())
    spans, confidence = raw["spans"], raw["confidence"]
    return QuoteFit(Trees(spans["trees"], spans["bias"]), tuple(confidence["weights"]), confidence["bias"])


def quotable(question: str, passages: Sequence[Found], rarity: Rarity) -> Quotable:
    """What could be quoted from `passages`."""
    asked = read(question)
    every = [
        (found, start, _sentence(found, start, end, cosine, asked, rarity))
        for found in passages
        for start, end, cosine in found.sentences
    ]
    best = sorted(every, key=lambda item: -item[2].score)[:MOST_SENTENCES]
    return Quotable(question, passages, best, candidates(question, [sentence for _, _, sentence in best], rarity))


def _sentence(found: Found, start: int, end: int, cosine: float, asked: Words, rarity: Rarity) -> Sentence:
    text = found.grain.source.text
    covered, _, _ = _shares(asked, read(text[start:end]), rarity)
    return Sentence(text[start:end], cosine, covered, found.order, text[max(0, start - BEFORE_CHARS) : start])


def quote(question: str, passages: Sequence[Found], rarity: Rarity, fit: QuoteFit) -> Quote | None:
    """The words of `passages` that most likely answer; None if there is no sentence to quote."""
    choice = quotable(question, passages, rarity)
    if not choice.candidates.places:
        return None
    scores = fit.spans(choice.candidates.features)
    best, features = weigh(choice, scores, rarity)
    number, first, last = choice.candidates.places[best]
    found, start, sentence = choice.sentences[number]
    sure = 1 / (1 + math.exp(-max(-40.0, min(40.0, fit.log_odds(features)))))
    return Quote(found, start, start + len(sentence.text), start + first, start + last, sure)


def weigh(choice: Quotable, scores: Floats, rarity: Rarity) -> tuple[int, tuple[float, ...]]:
    """The number of the candidate with the best of `scores`, and its CONFIDENCE_FEATURES."""
    best = int(scores.argmax())
    of_sentence = np.array([place[0] for place in choice.candidates.places])
    number = int(of_sentence[best])
    found, _, sentence = choice.sentences[number]
    elsewhere = np.array([other is not found for other, _, _ in choice.sentences])[of_sentence]
    orders = sorted((passage.order for passage in choice.passages), reverse=True)
    asked = read(choice.question)
    here, there = read(sentence.text), read(found.grain.source.text)
    covered, uncovered, missing = _shares(asked, here, rarity)
    passage_covered, passage_uncovered, passage_missing = _shares(asked, there, rarity)
    top = np.sort(scores)
    return best, (
        float(top[-1]),
        float(top[-1] - scores[of_sentence != number].max(initial=0.0)),
        float(top[-1] - scores[elsewhere].max(initial=0.0)),
        float(top[-5:].mean()),
        float(scores.clip(0).sum()),
        sentence.score - max(other.score for _, _, other in choice.sentences),
        sentence.score, sentence.cosine, covered, uncovered, missing,
        found.order, found.order - orders[0],
        orders[0] - orders[min(1, len(orders) - 1)], orders[0] - orders[min(5, len(orders) - 1)],
        passage_covered, passage_uncovered, passage_missing,
        float(not asked.numbers <= here.numbers), float(not asked.numbers <= there.numbers),
        float(asked.negated != here.negated), float(asked.negated),
        _names_lacking(asked, here), _names_lacking(asked, there), float(len(asked.names)),
        _opposite(asked, here), _opposite(asked, there),
        float(len(set(asked.content))), float(len(choice.question.split())),
    )  # fmt: skip


def _shares(asked: Words, said: Words, rarity: Rarity) -> tuple[float, float, float]:
    """Share of the asked words that are said, by rarity; the rarest of those that are not, and their number."""
    weights = {stem: rarity(stem) for stem in asked.content}
    has = set(said.content)
    lacking = [weight for stem, weight in weights.items() if stem not in has]
    return 1 - sum(lacking) / (sum(weights.values()) or 1.0), max(lacking, default=0.0), float(len(lacking))


def _names_lacking(asked: Words, said: Words) -> float:
    return len(asked.names - set(said.content) - said.names) / max(1, len(asked.names))


def _opposite(asked: Words, said: Words) -> float:
    has = set(said.content)
    return float(any(opposites(stem) & has for stem in asked.content if stem not in has))
