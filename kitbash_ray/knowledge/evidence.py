"""How well a text answers a question: the numbers that a confidence is made of.

Pure: words and cosines in, features out. calibration.py turns them into a probability.
The features are the checks that stop near-misses: cosine alone gives "half-life of
carbon-11" and "half-life of carbon-14" the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from kitbash_ray.knowledge.quantities import quantity_unsaid
from kitbash_ray.knowledge.text import Words, opposites, question_kind, read, scope_words

#: Of a stem: 0 for one that every fact has, near 1 for one that none has.
Rarity = Callable[[str], float]

#: What one fully rare shared word adds to the cosine when candidates are put in order.
LEXICAL_WEIGHT = 0.02
_DATE = re.compile(r"\b(1\d{3}|20\d{2}|centur(y|ies)|BCE?|AD|CE|ago|years old|version|since)\b|\b\d+(st|nd|rd|th)\b")
_STRONG_KINDS = frozenset({"who", "when", "where", "why", "count"})
_COUNT = re.compile(
    r"\b(no|none|one|once|twice|half|both|single|double|pair|dozen|infinite(ly)?|(m|b|tr)illions?|every|each|unlimited|all)\b",
    re.IGNORECASE,
)
_CAUSE = re.compile(
    r"\b(because|since|so that|so|due to|as a result|thereby|therefore|thus|caus\w+|prevent\w*|allow\w*|"
    r"lets?|result\w*|ow(es|ing) to|to|by|mak(es|ing)|keeps?|reduc\w+|rather than|otherwise)\b"
)

FEATURES = (
    "cosine",  # of the question and the nearest way of asking or saying it
    "lead",  # cosine over the best other fact's
    "hybrid_lead",  # the same with shared rare words counted in
    "coverage",  # share of the question's content words, by rarity, that the fact has
    "uncovered",  # rarity of the rarest content word that the fact lacks
    "numbers_differ",  # the question names a number that the fact lacks
    "negation_differs",  # one is negated, the other not
    "names_differ",  # share of the question's names that the fact lacks
    "wrong_kind",  # how many, when or who, and the fact has no number, date or name
    "unexplained",  # why, and the fact has no word of a cause
    "subject",  # the question names what the fact begins with
    "fact_coverage",  # share of the fact's content words that the question has
    "length",  # content words in the question, of twelve
    "one_word_off",  # coverage times uncovered: all the same words but one, as near-misses have
    "opposite",  # the question says the opposite of a word of the fact
    "contradicted",  # numbers, negation, kind or opposite are against it, on a well covered question
    "lexical",  # shared words, by rarity, of three
    "asked",  # the nearest text is a way to ask, not the fact itself
    "swapped",  # the question and that way to ask differ by a rare word on each side
    "kind_unasked",  # who, when, where, why or how many, and no way to ask for the fact is of that kind
    "ask_overlap",  # share of the words, by rarity, that the question has in common with the likest way to ask
    "statement",  # cosine of the question and the fact itself
    "statement_lead",  # the same over the best other fact's cosine
    "three_nearest",  # mean cosine of the three nearest of the fact and its ways to ask
    "spread",  # cosine over that mean: one way to ask alone is near
    "words",  # words in the question, of thirty
    "ask_negated",  # the question is negated and the nearest way to ask is not, or the other way round
    "ask_opposite",  # the question says the opposite of a word of the nearest way to ask
    "scope_added",  # words like only, all, first or least that are in the question, not in the way to ask, of two
    "scope_dropped",  # and the other way round
    "quantity_unsaid",  # it wants a time, a mass, a price, ..., of which the fact says nothing
    "ask_uncovered",  # rarity of the rarest content word that the nearest way to ask lacks
    "two_uncovered",  # rarity of the second rarest word that the fact lacks
    "ask_numbers",  # the question and the nearest way to ask name different numbers
    "vote",  # log-odds that the asks of many give it, learned from them alone; 0 where none are learned from
    "verified",  # log-odds of a model that reads question and fact together; 0 in layer 0, which has no time for it
)

#: Features that can only speak for an answer, or only against it; a fit must respect that.
ALWAYS_FOR = frozenset({"cosine", "lead", "hybrid_lead", "vote", "verified"})
ALWAYS_AGAINST = frozenset(
    {
        "uncovered", "numbers_differ", "negation_differs", "names_differ", "wrong_kind", "unexplained",
        "one_word_off",
        "opposite", "contradicted", "swapped", "kind_unasked", "ask_negated", "ask_opposite", "scope_added",
        "quantity_unsaid", "ask_uncovered", "two_uncovered", "ask_numbers",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may answer: the statement, every way to ask for it, and the nearest of all these.

    `cosines` are those of the statement and of each ask, in that order. `vote`: see FEATURES.
    """

    text: str
    asks: tuple[str, ...]
    nearest: str
    cosine: float
    cosines: tuple[float, ...]
    vote: float = 0.0

    def parts(self) -> list[Words]:
        """The statement's words and those of each ask."""
        return [read(text) for text in (self.text, *self.asks)]


class Comparison:
    """A question beside its candidates, of which there is at least one."""

    def __init__(self, question: str, candidates: Sequence[Candidate], rarity: Rarity) -> None:
        self._question, self._candidates, self._rarity = question, candidates, rarity
        self._weights = {stem: rarity(stem) for stem in read(question).content}
        self._stems = [{stem for part in item.parts() for stem in part.content} for item in candidates]
        self._shared = [sum(weight for stem, weight in self._weights.items() if stem in has) for has in self._stems]
        #: Each candidate's cosine with shared rare words counted in.
        self.orders = [item.cosine + LEXICAL_WEIGHT * own for item, own in zip(candidates, self._shared, strict=True)]

    def best(self) -> int:
        """The number of the candidate that comes first by `orders`."""
        return max(range(len(self.orders)), key=self.orders.__getitem__)

    def features(self, at: int, verified: float = 0.0) -> tuple[float, ...]:
        """The FEATURES of candidate number `at`, seen beside the others; `verified` is one of them."""
        question, candidate, weights, has = self._question, self._candidates[at], self._weights, self._stems[at]
        asked, kind, nearest, parts = read(question), question_kind(question), read(candidate.nearest), candidate.parts()
        near_weights = {stem: self._rarity(stem) for stem in nearest.content}
        best_other, best_other_order = self._best_other(at)
        coverage = self._shared[at] / (sum(weights.values()) or 1.0)
        uncovered = max((weight for stem, weight in weights.items() if stem not in has), default=0.0)
        names = frozenset().union(*(part.names for part in parts))
        kind_is_wrong = float(wrong_kind(kind, candidate.text))
        numbers_differ = float(not asked.numbers <= frozenset().union(*(part.numbers for part in parts)))
        negation_differs = float(_negation_differs(kind, asked.negated, parts[0].negated or nearest.negated))
        opposite = float(any(opposites(stem) & has for stem in weights if stem not in has))
        asked_before = float(candidate.nearest in candidate.asks)
        unasked = max((weight for stem, weight in near_weights.items() if stem not in weights), default=0.0)
        return (
            candidate.cosine,
            candidate.cosine - best_other,
            self.orders[at] - best_other_order,
            coverage,
            uncovered,
            numbers_differ,
            negation_differs,
            len(asked.names - has - names) / max(1, len(asked.names)),
            kind_is_wrong,
            float(kind == "why" and not _CAUSE.search(candidate.text)),
            float(bool(set(parts[0].content[:2]) & set(asked.content))),
            sum(weight for stem, weight in near_weights.items() if stem in weights) / (sum(near_weights.values()) or 1.0),
            min(len(asked.content), 12) / 12,
            coverage * uncovered,
            opposite,
            coverage * max(numbers_differ, negation_differs, kind_is_wrong, opposite),
            min(self._shared[at], 3.0) / 3,
            asked_before,
            asked_before * min(uncovered, unasked),
            float(kind in _STRONG_KINDS and bool(candidate.asks) and kind not in map(question_kind, candidate.asks)),
            max((_overlap(weights, part.content, self._rarity) for part in parts[1:]), default=0.0),
            *_of_all_texts(candidate, best_other),
            min(len(question.split()), 30) / 30,
            *_beside_nearest(question, candidate, weights, has),
            *(candidate.vote, verified),
        )

    def _best_other(self, at: int) -> tuple[float, float]:
        """The highest cosine and the highest order of all candidates but number `at`."""
        others = [other for other in range(len(self.orders)) if other != at]
        return (
            max((self._candidates[other].cosine for other in others), default=0.0),
            max((self.orders[other] for other in others), default=0.0),
        )


def rounded(features: tuple[float, ...]) -> tuple[float, ...]:
    """The features as they are recorded: the digits that could change a confidence."""
    return tuple(round(value, 4) for value in features)


def _beside_nearest(
    question: str, candidate: Candidate, weights: Mapping[str, float], has: AbstractSet[str]
) -> tuple[float, ...]:
    """The features `ask_negated` to `ask_numbers`."""
    asked, nearest = read(question), read(candidate.nearest)
    added = scope_words(question) - scope_words(candidate.nearest)
    turned = {stem for stem in asked.content if stem not in nearest.content and opposites(stem) & set(nearest.content)}
    return (
        float(asked.negated != nearest.negated),
        float(bool(turned)),
        min(len(added), 2) / 2,
        min(len(scope_words(candidate.nearest) - scope_words(question)), 2) / 2,
        float(quantity_unsaid(question, candidate.text)),
        max((weight for stem, weight in weights.items() if stem not in nearest.content), default=0.0),
        sorted((0.0, 0.0, *(weight for stem, weight in weights.items() if stem not in has)))[-2],
        float(asked.numbers != nearest.numbers),
    )


def _of_all_texts(candidate: Candidate, best_other: float) -> tuple[float, float, float, float]:
    """The features `statement` to `spread`."""
    nearest = sorted(candidate.cosines, reverse=True)[:3]
    mean = sum(nearest) / len(nearest)
    statement = candidate.cosines[0]
    return statement, statement - best_other, mean, candidate.cosine - mean


def _overlap(weights: Mapping[str, float], words: Iterable[str], rarity: Rarity) -> float:
    """Weighted Jaccard of the question's stems and these."""
    others = {stem: rarity(stem) for stem in words if stem not in weights}
    shared = sum(weight for stem, weight in weights.items() if stem in set(words))
    return shared / (sum(weights.values()) + sum(others.values()) or 1.0)


def wrong_kind(kind: str, text: str) -> bool:
    """Whether a question of this kind (how many, when, who) wants something that `text` has not."""
    words = read(text)
    if kind == "count":
        return not words.numbers and not _COUNT.search(text)
    if kind == "when":
        return not _DATE.search(text)
    return kind == "who" and not words.names


def _negation_differs(kind: str, asked: bool, said: bool) -> bool:
    """Whether a negation on one side only changes the answer: it does not for "does X ...?" and "why not X?"."""
    return asked != said and kind not in ("yesno", "why")
