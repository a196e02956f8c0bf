"""What facts say beside each other: contradictions, repetitions, and asks that a fact does not answer.

By words, numbers and units alone, so that checking a thousand facts takes a second. It finds what
a reviewer should look at and not more: every finding is a warning, since two facts may look alike
and be right. Pure.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations

from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.evidence import wrong_kind
from kitbash_ray.knowledge.text import Words, normalize, question_kind, read, stem

#: Share of the words, by rarity, from which two texts are about the same and two asks are the same.
SAME_TOPIC, SAME_ASK = 0.75, 0.85
#: A stem in more facts than this names no topic.
COMMON = 40
_QUANTITY = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)\s?(%|°\s?[CFK]?|[^\W\d_]+(?:/[^\W\d_]+)?)?")
_NOT_UNITS = frozenset("and or to of in on at is are the a an with for per by from as that than which when it has was".split())


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something a person should look at. `fact` has it; `other` is the fact it clashes with, if there is one."""

    fact: Fact
    message: str
    other: Fact | None = None


def doubts(facts: Sequence[Fact]) -> Iterator[Doubt]:
    """Everything doubtful about `facts` by themselves and beside each other."""
    for fact in facts:
        yield from _unanswered(fact)
    weigh = _Rarity(facts)
    for one, other in _neighbours(facts):
        if one.faction == other.faction and _meet(one, other) and (doubt := _clash(one, other, weigh)):
            yield doubt


def _unanswered(fact: Fact) -> Iterator[Doubt]:
    for ask in fact.asks:
        kind = question_kind(ask)
        if wrong_kind(kind, fact.text):
            wanted = {"count": "number", "when": "time", "who": "name"}[kind]
            yield Doubt(fact, f"has no {wanted}, which {ask!r} asks for.")


def _clash(one: Fact, other: Fact, weigh: _Rarity) -> Doubt | None:
    """What is wrong with two facts that share rare words."""
    first, second = read(one.text), read(other.text)
    alike = weigh.overlap(first.content, second.content) >= SAME_TOPIC
    if alike and (values := _different_values(one.text, other.text) or _different_numbers(first, second)):
        return Doubt(one, f"may contradict {other.id!r}: it says {values[0]} here and {values[1]} there.", other)
    if alike and first.negated != second.negated:
        return Doubt(one, f"may contradict {other.id!r}: one of them has a negation.", other)
    if alike and first.numbers == second.numbers:
        return Doubt(one, f"says nearly the same as {other.id!r}.", other)
    for ask in one.asks:
        for theirs in other.asks:
            if question_kind(ask) != question_kind(theirs) or not _same_ask(read(ask), read(theirs), weigh):
                continue
            if values := _different_values(one.text, other.text):
                message = f"may contradict {other.id!r}: asked {ask!r} and {theirs!r}, it says {values[0]} here and {values[1]} there."
                return Doubt(one, message, other)
            if normalize(ask) == normalize(theirs) or one.cartridge == other.cartridge:
                message = f"claims {ask!r}, and {other.id!r} claims {theirs!r}; one question has one answer."
                return Doubt(one, message, other)
    return None


def _same_ask(one: Words, other: Words, weigh: _Rarity) -> bool:
    return (
        one.numbers == other.numbers
        and one.negated == other.negated
        and one.names == other.names
        and weigh.overlap(one.content, other.content) >= SAME_ASK
    )


def _different_values(one: str, other: str) -> tuple[str, str] | None:
    """Two values in one unit, when the texts share none in it."""
    ours, theirs = _quantities(one), _quantities(other)
    for unit in ours.keys() & theirs.keys():
        if unit and not ours[unit] & theirs[unit]:
            return f"{min(ours[unit])} {unit}", f"{min(theirs[unit])} {unit}"
    return None


def _different_numbers(one: Words, other: Words) -> tuple[str, str] | None:
    """A number of each that the other lacks, whatever it counts."""
    ours, theirs = one.numbers - other.numbers, other.numbers - one.numbers
    return (min(ours), min(theirs)) if ours and theirs else None


def _quantities(text: str) -> dict[str, set[str]]:
    """The numbers of a text by the word or sign that follows them."""
    found: dict[str, set[str]] = defaultdict(set)
    for number, unit in _QUANTITY.findall(text):
        unit = unit if not unit.isascii() or len(unit) < 3 else stem(unit.casefold())
        found["" if unit in _NOT_UNITS else unit.replace(" ", "")].add(number.replace(",", ""))
    return found


class _Rarity:
    """How rare a stem is among the facts."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.counts = Counter(word for fact in facts for word in _stems(fact))
        self._total = len(facts) + 1

    def overlap(self, one: Iterable[str], other: Iterable[str]) -> float:
        """Weighted Jaccard of two sets of stems: 0 when nothing is shared, 1 for the same words."""
        first, second = set(one), set(other)
        if len(first & second) < 2:
            return 0.0
        return self._weight(first & second) / self._weight(first | second)

    def _weight(self, stems: set[str]) -> float:
        return sum(math.log(self._total / (self.counts[word] + 0.5)) for word in stems)


def _neighbours(facts: Sequence[Fact]) -> list[tuple[Fact, Fact]]:
    """Pairs of facts that share two stems which few facts have."""
    holders: dict[str, list[int]] = defaultdict(list)
    for at, fact in enumerate(facts):
        for word in _stems(fact):
            holders[word].append(at)
    shared: Counter[tuple[int, int]] = Counter()
    for rows in holders.values():
        if len(rows) <= COMMON:
            shared.update(combinations(rows, 2))
    return [(facts[one], facts[other]) for (one, other), count in sorted(shared.items()) if count >= 2]


def _stems(fact: Fact) -> set[str]:
    return {word for text in (fact.text, *fact.asks) for word in read(text).content}


def _meet(one: Fact, other: Fact) -> bool:
    """Whether there is a day on which both are valid."""
    begins = max(one.valid_from or date.min, other.valid_from or date.min)
    return begins <= min(one.valid_until or date.max, other.valid_until or date.max)
