"""Questions beside facts, with whether the fact answers: what the verifier of layer 2 learns from.

From the shipped cartridges' ways to ask (each against its own fact, against the nearest others, and
with one thing swapped so that its fact no longer answers), from the traps, and from the
obscure held-out questions. What people ordinarily ask (`dev_d`, `ordinary`, `everyday`, `asked_*`)
and the judges (`newcomer`, `swaps`) are not in it. Not here: the training (fit_verifier.py).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fit_calibration import CARTRIDGES, DATA, JUDGES, ORDINARY, TRAPS, Knowledge, read_set, shipped_library
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.documents import read_jsonl
from kitbash_ray.knowledge.encoder import Vectors
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope, build_arrays
from kitbash_ray.knowledge.text import NEGATIONS, NUMBER_WORDS, STOP_WORDS, normalize, opposites, read, stem
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.questions import question_key

OBSCURE = ("dev_a", "dev_b", "dev_c")
#: Nothing is learned from the questions of these.
MEASURED = (*ORDINARY, *JUDGES, "swaps")
#: What a pair weighs where it is not 1: what was written one by one teaches more than what is made from asks.
WEIGHTS = {"trap": 2.0, "control": 2.0, "obscure": 2.0}
#: Candidates of an obscure question that it is put beside.
BESIDE = 3
#: Above this cosine another fact's text asks the same thing, so that fact may answer too.
SAME = 0.9
HOLD_OUT = 10  # every tenth fact, by hash, stays out of the training

OTHER_QUESTIONS = """who invented {}/when was {} discovered/how much does {} cost/who discovered {}/where is {} made
what is the history of {}/how old is {}/why is {} important/how heavy is {}/what color is {}/how do i uninstall {}
is there an alternative to {}/what is the size of {}/who named {}/how fast is {}/what are the disadvantages of {}
how many {} are there/where does the word {} come from/what is the opposite of {}/what happens without {}""".replace(
    "\n", "/"
).split("/")
_OPENING = re.compile(r"(?i)(what|who|when|where|why|how many|how much|how long|how)\b(.*)")


class Pair(NamedTuple):
    """A question beside a fact. `asks` are the fact's, the nearest first, without the question itself."""

    question: str
    statement: str
    asks: tuple[str, ...]
    answers: bool
    weight: float
    kind: str
    fact: str

    @property
    def held_out(self) -> bool:
        return is_held_out(self.fact)


def is_held_out(fact: str) -> bool:
    """Whether nothing is learned from what is about the fact of this id."""
    return hashlib.blake2b(fact.encode(), digest_size=1).digest()[0] % HOLD_OUT == 0


def all_pairs(store: VectorStore, seed: int = 0) -> list[Pair]:
    """Every pair there is to learn from, none with a question of those that measure."""
    rnd, library = random.Random(seed), shipped_library()
    measured = {normalize(raw["query"]) for name in MEASURED for _, raw in read_jsonl(DATA / name / "questions.jsonl")}
    asks = _Asks(library.facts, store, rnd)
    found = [*asks.pairs(), *_trap_pairs(library, store)]
    sets = [read_set(name) for name in OBSCURE]
    pooled = Knowledge([fact for own in sets for fact in own.facts], [item for own in sets for item in own.questions])
    own = Knowledge(library.facts, [item for item in library.questions if item[0] == CARTRIDGES])
    for obscure in (*sets, pooled, own):
        found += _obscure_pairs(obscure, store)
    unique = {(pair.question, pair.fact): pair for pair in found if normalize(pair.question) not in measured}
    return list(unique.values())


def taught_keys() -> set[int]:
    """The `question_key` of every held-out question and trap that the verifier may have learned from."""
    own = [question.query for group, question in shipped_library().questions if group == CARTRIDGES]
    obscure = [raw["query"] for name in OBSCURE for _, raw in read_jsonl(DATA / name / "questions.jsonl")]
    traps = [raw["query"] for raw in read_traps() if not is_held_out(raw["of"])]
    return {question_key(query) for query in (*own, *obscure, *traps)}


def read_traps() -> list[dict[str, Any]]:
    return [raw for name in TRAPS for _, raw in read_jsonl(DATA / name / "questions.jsonl")]


def _nearest_asks(fact: Fact, question: Vectors, store: VectorStore, text: str) -> tuple[str, ...]:
    """The two of a fact's asks that are nearest to a question, without itself."""
    asks = [ask for ask in fact.asks if normalize(ask) != normalize(text)]
    if not asks:
        return ()
    cosines = store.vectors(asks) @ question
    return tuple(asks[at] for at in np.argsort(-cosines)[:2])


def _trap_pairs(library: Knowledge, store: VectorStore) -> Iterator[Pair]:
    """Each trap beside the fact that it was made from, and beside what is found for it, unless that fact is held out."""
    traps = read_traps()
    vectors = store.vectors([raw["query"] for raw in traps])
    facts, index = {fact.id: fact for fact in library.facts}, GrainIndex(build_arrays(library.facts, store))
    for raw, vector in zip(traps, vectors, strict=True):
        found = [hit.grain.source.fact_id for hit in index.nearest(vector, Scope())][: BESIDE - 1]
        # Whether another cartridge answers it was looked at by nobody.
        beside = [] if is_held_out(raw["of"]) else [at for at in found if at.partition(":")[0] == raw["of"].partition(":")[0]]
        for at in dict.fromkeys((raw["of"], *beside)):
            fact, answers = facts[at], at in raw["expected"]
            asks = _nearest_asks(fact, vector, store, raw["query"])
            kind = "control" if answers else "trap" if at == raw["of"] else "beside"
            yield Pair(raw["query"], fact.text, asks, answers, WEIGHTS.get(kind, 1.0), kind, at)


def _obscure_pairs(library: Knowledge, store: VectorStore) -> Iterator[Pair]:
    """Each question beside the nearest facts and those that answer it."""
    vectors = store.vectors([question.query for _, question in library.questions])
    facts, index = {fact.id: fact for fact in library.facts}, GrainIndex(build_arrays(library.facts, store))
    for (_, question), vector in zip(library.questions, vectors, strict=True):
        beside = [hit.grain.source.fact_id for hit in index.nearest(vector, Scope())][:BESIDE]
        for at in dict.fromkeys((*beside, *question.expected)):
            asks = _nearest_asks(facts[at], vector, store, question.query)
            kind = "obscure right" if at in question.expected else "obscure wrong"
            yield Pair(question.query, facts[at].text, asks, at in question.expected, WEIGHTS["obscure"], kind, at)


class _Asks:
    """The pairs that are made from the shipped ways to ask."""

    def __init__(self, facts: Sequence[Fact], store: VectorStore, rnd: random.Random) -> None:
        self._facts, self._store, self._rnd = facts, store, rnd
        rows = [(number, text) for number, fact in enumerate(facts) for text in (fact.text, *fact.asks)]
        self._rows, self._vectors = rows, store.vectors([text for _, text in rows])
        self._owners = np.array([number for number, _ in rows])
        self._said = [{s for text in (fact.text, *fact.asks) for s in read(text).content} for fact in facts]
        self._count = Counter(s for said in self._said for s in said)
        self._words: dict[str, set[str]] = defaultdict(set)
        self._before: dict[str, set[str]] = defaultdict(set)
        self._surface: dict[str, str] = {}
        for fact in facts:
            for ask in fact.asks:
                words = re.findall(r"[A-Za-z][\w'-]*", ask)
                self._words[fact.cartridge] |= {word for word in words if _content(word)}
                self._surface |= {stem(word.lower()): word.lower() for word in words}
                for first, second in pairwise(words):
                    if _content(first) and _content(second):
                        self._before[stem(second.lower())].add(first)
        vocabulary = sorted({word for words in self._words.values() for word in words})
        self._place = {word: at for at, word in enumerate(vocabulary)}
        self._meaning = store.vectors(vocabulary)

    def pairs(self) -> Iterator[Pair]:
        for at, (number, text) in enumerate(self._rows):
            fact, vector = self._facts[number], self._vectors[at]
            if text == fact.text:
                continue
            others = self._asks_of(number, vector, text)
            # One in five is put beside itself: that two texts differ a little must not speak against an answer.
            yield self._pair(text, number, (text,) if self._rnd.random() < 0.2 else others, "own")
            near = self._neighbours(number, vector)
            for other in {self._rnd.choice(near[:2]), self._rnd.choice(near[2:])}:
                yield self._pair(text, other, self._asks_of(other, vector, text), "neighbour")
            changed = self._swapped(text, number)
            if changed and normalize(changed) != normalize(text):
                asks = others if self._rnd.random() < 0.35 else (text, *others[:1])
                yield self._pair(changed, number, asks, "swap")

    def _pair(self, question: str, number: int, asks: tuple[str, ...], kind: str) -> Pair:
        fact = self._facts[number]
        return Pair(question, fact.text, asks, kind == "own", 1.0, kind, fact.id)

    def _asks_of(self, number: int, vector: Vectors, text: str) -> tuple[str, ...]:
        start, end = np.searchsorted(self._owners, (number, number + 1))
        order = start + 1 + np.argsort(-(self._vectors[start + 1 : end] @ vector))
        return tuple(self._rows[at][1] for at in order if normalize(self._rows[at][1]) != normalize(text))[:2]

    def _neighbours(self, number: int, vector: Vectors) -> list[int]:
        cosines = self._vectors @ vector
        order = np.argsort(-cosines)[:80]
        return list(dict.fromkeys(int(self._owners[at]) for at in order if self._owners[at] != number and cosines[at] < SAME))[
            :6
        ]

    def _swapped(self, ask: str, number: int) -> str | None:
        """`ask` with one thing changed so that its fact no longer answers; None where nothing can be changed."""
        ways = [
            self._number,
            self._opposite,
            self._other_property,
            self._entity,
            self._entity,
            self._restriction,
            self._negation,
        ]
        self._rnd.shuffle(ways)
        if re.search(r"\d", ask):
            ways.insert(0, self._number)
        if any(self._surface.keys() & opposites(s) for s in read(ask).content) and self._rnd.random() < 0.6:
            ways.insert(0, self._opposite)
        return next((changed for way in ways if (changed := way(ask, number))), None)

    def _number(self, ask: str, number: int) -> str | None:
        found = list(re.finditer(r"\d+", ask))
        if not found:
            return None
        match = self._rnd.choice(found)
        return f"{ask[: match.start()]}{max(0, int(match[0]) + self._rnd.choice((-2, -1, 1, 2, 3, 10)))}{ask[match.end() :]}"

    def _opposite(self, ask: str, number: int) -> str | None:
        for match in _content_words(ask):
            others = [self._surface[s] for s in opposites(stem(match[0].lower())) if s in self._surface]
            others = [word for word in others if stem(word) not in self._said[number]]
            if others:
                return _replaced(ask, match, self._rnd.choice(sorted(others)))
        return None

    def _negation(self, ask: str, number: int) -> str | None:
        if self._rnd.random() < 0.6:  # or it would be the most frequent change
            return None
        if " not " in ask:
            return ask.replace(" not ", " ", 1)
        match = re.search(r"(?i)\b(what|which|who)\b.*?\b(is|are|was|were|can|could|should|will)\b", ask)
        return f"{ask[: match.end()]} not{ask[match.end() :]}" if match else None

    def _restriction(self, ask: str, number: int) -> str | None:
        for match in self._rnd.sample(found := _content_words(ask), len(found)):
            words = [word for word in self._before[stem(match[0].lower())] if stem(word.lower()) not in self._said[number]]
            if words:
                return f"{ask[: match.start()]}{self._rnd.choice(sorted(words))} {ask[match.start() :]}"
        return None

    def _other_property(self, ask: str, number: int) -> str | None:
        found, opening = _content_words(ask), _OPENING.match(ask)
        if not found:
            return None
        rarest = max(found, key=lambda match: -self._count[stem(match[0].lower())])
        if opening and self._rnd.random() < 0.4:
            heads = ("who", "when", "where", "why", "how many", "how much", "how long")
            return self._rnd.choice([head for head in heads if head != opening[1].lower()]) + opening[2]
        return self._rnd.choice(OTHER_QUESTIONS).format(rarest[0]) + ("?" if ask.endswith("?") else "")

    def _entity(self, ask: str, number: int) -> str | None:
        """Another word of the same cartridge, one of the eight that mean most nearly the same."""
        found = _content_words(ask)
        if not found:
            return None
        match = min(found, key=lambda match: self._count[stem(match[0].lower())] * (0.5 + self._rnd.random()))
        said, word = self._said[number], match[0]
        pool = [
            other
            for other in sorted(self._words[self._facts[number].cartridge])
            if stem(other.lower()) not in said and other[0].isupper() == word[0].isupper()
        ]
        if word not in self._place or len(pool) < 5:
            return None
        cosines = self._meaning[[self._place[other] for other in pool]] @ self._meaning[self._place[word]]
        near = [int(at) for at in np.argsort(-cosines)[:8] if cosines[at] < 0.8]
        return _replaced(ask, match, pool[self._rnd.choice(near)]) if near else None


def _content(word: str) -> bool:
    lowered = word.lower()
    return len(word) > 2 and lowered not in STOP_WORDS and lowered not in NEGATIONS and lowered not in NUMBER_WORDS


def _content_words(text: str) -> list[re.Match[str]]:
    return [match for match in re.finditer(r"[A-Za-z][\w'-]*", text) if _content(match[0])]


def _replaced(text: str, match: re.Match[str], word: str) -> str:
    return text[: match.start()] + word + text[match.end() :]


def noisy(question: str, rnd: random.Random) -> str:
    """The question as somebody may type it; what answers it and what does not is typed alike."""
    if rnd.random() < 0.5:
        question = question.lower()
    if rnd.random() < 0.4:
        question = question.rstrip("?. ")
    if rnd.random() < 0.12:
        kept = [word for word in question.split() if word.lower() not in _DROPPED]
        question = " ".join(kept) if len(kept) > 1 else question
    if rnd.random() < 0.1 and len(question) > 12:
        at = rnd.randrange(4, len(question) - 2)
        if question[at].isalpha() and question[at + 1].isalpha():
            typed = (question[at + 1] + question[at], "", question[at] * 2 + question[at + 1])
            question = question[:at] + rnd.choice(typed) + question[at + 2 :]
    return question


_DROPPED = frozenset("what is the a an are of does do was were in".split())
