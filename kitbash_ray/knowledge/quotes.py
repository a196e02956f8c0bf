"""What a passage says to a question: the sentence that answers, and the words in it.

The sentences of the passages found are put in order by cosine and shared words. A model reads the passages of
the best few (extractor.py); with what it says, boosted trees rank the runs of words (spans.py), and a logistic
regression says how probable it is that the sentence answers. Both are fitted on questions that people asked about
encyclopedic text (benchmarks/fit_quotes.py).
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
from kitbash_ray.knowledge.extractor import Extracts, Reading
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
    "content_words", "words", "read_words", "read_answered", "read_lead", "best_answered", "answered_lead", "best_read",
)  # fmt: skip
#: What the model's reading says of a run of words; the best is that of all candidates.
READ_FEATURES = (
    "begins",  # log-probability that the answer begins there
    "ends",  # and that it ends there
    "both",  # their sum
    "answered",  # log-odds that the passage answers
    "both_answered",  # the sum, less where the passage rather does not answer
    "both_lead",  # the sum less the best
    "both_answered_lead",
)
#: The least that both log-probabilities together count.
LEAST_BOTH = -20.0
#: How far the log-odds of the one passage that was read are taken to lie before the next.
LEAD_ALONE = 3.0


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
    """The best sentences of the passages found, each with its passage and where it begins, and the candidates in them.

    `answered`: of each sentence the log-odds that its passage answers. `read`: READ_FEATURES of each candidate.
    """

    question: str
    passages: Sequence[Found]
    sentences: list[tuple[Found, int, Sentence]]
    candidates: Candidates
    answered: tuple[float, ...]
    read: Floats

    @property
    def features(self) -> Floats:
        """All features of each candidate."""
        return np.hstack((self.candidates.features, self.read))


@cache
def load_quote_fit(path: Path = SHIPPED) -> QuoteFit:
    """The fit in `path`; the one that ships with Kitbash by default."""
    raw = json.loads(path.read_text())
    spans, confidence = raw["spans"], raw["confidence"]
    return QuoteFit(Trees(spans["trees"], spans["bias"]), tuple(confidence["weights"]), confidence["bias"])


def quotable(question: str, passages: Sequence[Found], rarity: Rarity, extractor: Extracts) -> Quotable:
    """What could be quoted from `passages`."""
    asked = read(question)
    every = [
        (found, start, _sentence(found, start, end, cosine, asked, rarity))
        for found in passages
        for start, end, cosine in found.sentences
    ]
    best = sorted(every, key=lambda item: -item[2].score)[:MOST_SENTENCES]
    readings = _readings(question, [found for found, _, _ in best], extractor)
    runs = candidates(question, [sentence for _, _, sentence in best], rarity)
    read_of = _read_features(runs, [start for _, start, _ in best], readings)
    return Quotable(question, passages, best, runs, tuple(reading.answered for reading in readings), read_of)


def _readings(question: str, passages: Sequence[Found], extractor: Extracts) -> list[Reading]:
    """Of each of `passages`, of which the same may come again."""
    texts = list(dict.fromkeys(found.grain.source.text for found in passages))
    read_of = dict(zip(texts, extractor.read(question, texts), strict=True))
    return [read_of[found.grain.source.text] for found in passages]


def _read_features(runs: Candidates, starts: Sequence[int], readings: Sequence[Reading]) -> Floats:
    """READ_FEATURES of each candidate, its sentence beginning at one of `starts` in the passage of one of `readings`."""
    if not runs.places:
        return np.zeros((0, len(READ_FEATURES)))
    places = np.array(runs.places)
    rows = np.zeros((len(places), 4))
    for number, (start, reading) in enumerate(zip(starts, readings, strict=True)):
        own = places[:, 0] == number
        begins, ends = reading.begins_at(start + places[own, 1]), reading.ends_before(start + places[own, 2])
        rows[own] = np.column_stack((begins, ends, (begins + ends).clip(LEAST_BOTH), np.full(len(begins), reading.answered)))
    both = rows[:, 2]
    answered = both + rows[:, 3].clip(max=0.0)
    return np.column_stack((rows, answered, both - both.max(), answered - answered.max()))


def _sentence(found: Found, start: int, end: int, cosine: float, asked: Words, rarity: Rarity) -> Sentence:
    text = found.grain.source.text
    covered, _, _ = _shares(asked, read(text[start:end]), rarity)
    return Sentence(text[start:end], cosine, covered, found.order, text[max(0, start - BEFORE_CHARS) : start])


def quote(question: str, passages: Sequence[Found], rarity: Rarity, fit: QuoteFit, extractor: Extracts) -> Quote | None:
    """The words of `passages` that most likely answer; None if there is no sentence to quote."""
    choice = quotable(question, passages, rarity, extractor)
    if not choice.candidates.places:
        return None
    scores = fit.spans(choice.features)
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
        *_of_reading(choice, best),
    )  # fmt: skip


def _of_reading(choice: Quotable, best: int) -> tuple[float, ...]:
    """The features `read_words` to `best_read`."""
    _, _, both, answered, _, lead, _ = choice.read[best].tolist()
    by_passage = {id(found): its for (found, _, _), its in zip(choice.sentences, choice.answered, strict=True)}
    best_read = choice.read[:, READ_FEATURES.index("both_answered")].max()
    surest, *others = sorted(by_passage.values(), reverse=True)
    return both, answered, -lead, surest, surest - others[0] if others else LEAD_ALONE, float(best_read)


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
