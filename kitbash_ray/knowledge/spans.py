"""The words of a sentence that may answer a question, and the numbers by which one is preferred.

Every run of a few words that begins and ends with a word of content is a candidate. Its features
say what kind of thing it is (a number, a date, a name), what the question asks for, and where the
question's own words lie around it. English rules, no model: quotes.py ranks the candidates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kitbash_ray.knowledge.evidence import Rarity
from kitbash_ray.knowledge.text import NUMBER_WORDS, STOP_WORDS, question_kind, stem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

#: Words of the longest candidate; 98 of 100 answers to questions on encyclopedic text are no longer.
MAX_WORDS = 8
#: What a sentence's cosine counts beside its coverage; between 0.5 and 0.8 the same sentences come first.
COSINE_WEIGHT = 0.7
#: A distance to a word that is not there.
FAR = 20

_WORD = re.compile(r"[$£€¥]?\d+(?:[.,]\d+)*%?|[^\W\d_]\.(?:[^\W\d_]\.)+|\w+(?:['’-]\w+)*")
_YEAR = re.compile(r"1\d{3}|20\d{2}")
#: Where two sentences meet; what stands before must not be an abbreviation.
_MEET = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W_a-z])|[。！？]|\n+")
_SHORT = re.compile(
    r"(?:^|[\s(\[])(?:[^\W\d_]|St|Mrs?|Ms|Dr|Jr|Sr|No|Mt|Fr|Gen|Lt|Col|Capt|Rev|Prof|Inc|Ltd|Co|vs|cf|ca?|"
    r"e\.g|i\.e|etc|approx|vol|pp?|(?:[^\W\d_]\.)+[^\W\d_])$"
)
_MONTHS = frozenset(
    "january february march april may june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday".split()
)
_LARGE = frozenset("hundred thousand million billion trillion dozen percent half twice third quarter".split())
_PERIODS = frozenset("year years month months day days week weeks hour hours century centuries decade decades age".split())
#: Words that join others: a candidate neither begins nor ends with one.
_JOINTS = frozenset(
    """a an the of in on at by to from with for as and or but nor than that which who whom whose when where while if
    because since although though into onto upon about after before during between among through over under against
    without within is are was were be been being has have had having do does did will would can could may might must
    shall should not no it its he him his she her they them their there this these those also both either such so
    however thus then very more most only just even what how why until per via""".split()
)
#: What may stand beside a candidate; anything else counts as a word of content, a break as punctuation.
_BESIDE = (
    ("in on at near within", "of", "by", "to into towards", "from", "with", "for", "as", "the", "a an", "and or", "that which who",
     "is are was were be been", "has have had", "than", "about around over under between nearly almost")
)  # fmt: skip
_BESIDE_AT = {word: number for number, words in enumerate(_BESIDE, 1) for word in words.split()}
_CONTENT, _BREAK = 0, len(_BESIDE) + 1

_KINDS = ("what", "who", "when", "where", "count", "why", "how", "yesno")
#: What a question names right after "what" or "which", as one of a few sorts.
_SORTS = {
    "time": "year years date day month century decade time era period age season",
    "place": "country countries city cities town place region area state river sea lake ocean continent island location "
    "nation province county district building site mountain valley territory kingdom empire capital street",
    "person": "person people king queen emperor president leader ruler author scientist philosopher general duke man woman "
    "writer inventor founder minister architect name names nickname title role profession",
    "group": "group groups company organization party tribe tribes religion church nationality university agency government "
    "army team class language ethnicity dynasty bank school",
    "amount": "percentage percent number amount rate proportion share price size length height population distance age speed",
    "matter": "type types kind kinds term word form sort method process system thing things way ways reason effect",
}
_SORT_OF = {word: number for number, words in enumerate(_SORTS.values(), 1) for word in words.split()}
_ASKING = re.compile(r"\b(what|which|who|whom|whose|when|where|why|how)\b", re.IGNORECASE)

FEATURES = (
    # the question
    "kind", "sort", "asks_first", "question_words",
    # the candidate
    "words", "characters", "digits", "years", "months", "number_words", "names", "lower", "joints", "periods", "breaks", "money",
    "rarity", "asked_inside", "asked_inside_share", "sort_inside", "ends_ing", "ends_ed", "ends_ly", "begins_sentence",
    # its edges
    "before", "after", "before_before", "name_goes_on_left", "name_goes_on_right", "content_goes_on_left",
    "content_goes_on_right", "enclosed", "capital_first",
    # the question's words around it
    "left_distance", "right_distance", "near_weight", "wide_weight", "left_share", "next_asked_left", "next_asked_right",
    "after_asking_distance", "before_asking_distance", "last_asked_distance", "sort_distance", "clause_share",
    # the sentence
    "sentence_score", "sentence_lead", "cosine", "coverage", "uncovered", "passage_score", "passage_lead",
    "sentence_words", "position", "with_neighbour",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a passage that was found: its cosine, the share of the question's words that it has, by rarity,
    and what the passage was put in order by. `before` is the text in front of it."""

    text: str
    cosine: float
    coverage: float
    passage: float
    before: str = ""

    @property
    def score(self) -> float:
        """What sentences are put in order by, before any candidate is looked at."""
        return COSINE_WEIGHT * self.cosine + (1 - COSINE_WEIGHT) * self.coverage + self.passage


@dataclass(frozen=True, slots=True)
class Candidates:
    """Runs of words: `places` has the number of the sentence, the first character and the one after the last."""

    places: list[tuple[int, int, int]]
    features: Floats


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a question asks for and with which words."""

    kind: int
    sort: int
    sort_stem: str
    weights: dict[str, float]
    after: str
    before: str
    last: str
    asks_first: bool
    words: int


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence of `text` begins and ends."""
    found, start = [], 0
    for match in _MEET.finditer(text):
        stop = match.start() + (not match.group()[0].isspace())
        if text[match.start()] == "." and _SHORT.search(text[max(start, match.start() - 12) : match.start()]):
            continue
        end = match.start() + len(match.group().rstrip())
        if text[start:stop].strip():
            found.append((start, max(stop, end)))
        start = match.end()
    if text[start:].strip():
        found.append((start, start + len(text[start:].rstrip())))
    return found


@lru_cache(maxsize=4096)
def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word.lower()) for word in _WORD.findall(text))


def _read_question(question: str, rarity: Rarity) -> _Asked:
    words = [word.lower() for word in _WORD.findall(question)]
    at = next((number for number, word in enumerate(words) if _ASKING.fullmatch(word)), 0)
    kind = question_kind(question)
    if kind == "what" and words and words[at] == "how":
        kind = "how"
    if kind == "what" and words and words[at] in ("who", "whom", "whose", "when", "where"):
        kind = words[at] if words[at] in _KINDS else "who"
    content = [(number, stem(word)) for number, word in enumerate(words) if word not in _JOINTS and word not in STOP_WORDS]
    after = [name for number, name in content if number > at]
    before = [name for number, name in content if number < at]
    sort = next((number for number in (at + 1, at + 2, at + 3) if number < len(words) and words[number] in _SORT_OF), None)
    named = sort is not None and words[at] in ("what", "which", "whose") and kind in ("what", "when", "where")
    return _Asked(
        _KINDS.index(kind),
        _SORT_OF[words[sort]] if named and sort is not None else 0,
        stem(words[sort]) if named and sort is not None else "",
        {name: rarity(name) for _, name in content},
        after[0] if after else "",
        before[-1] if before else "",
        content[-1][1] if content else "",
        at == 0,
        len(words),
    )


class _Tokens:
    """One sentence as arrays with an entry for each word."""

    def __init__(self, text: str, asked: _Asked, rarity: Rarity) -> None:
        matches = list(_WORD.finditer(text))
        self.words = [match.group() for match in matches]
        self.starts = np.array([match.start() for match in matches], np.intp)
        self.ends = np.array([match.end() for match in matches], np.intp)
        lower = [word.lower() for word in self.words]
        self.stems = [stem(word) for word in lower]
        n = len(lower)
        gaps = [text[matches[i].end() : matches[i + 1].start()] for i in range(n - 1)]
        self.gap = np.array([True, *(bool(gap.strip()) for gap in gaps), True])  # punctuation before word i, and after the last
        self.hard = np.array([True, *(any(char in ';:()[]"“”—–' for char in gap) for gap in gaps), True])
        self.month = np.array([word in _MONTHS and self.words[i][0].isupper() for i, word in enumerate(lower)], bool)
        self.joint = np.array([word in _JOINTS for word in lower], bool) & ~self.month  # May is a month
        self.digit = np.array([any(char.isdigit() for char in word) for word in lower], bool)
        self.year = np.array([bool(_YEAR.fullmatch(word)) for word in lower], bool)
        self.count = np.array([word in NUMBER_WORDS or word in _LARGE for word in lower], bool)
        self.name = np.array([word[0].isupper() for word in self.words], bool) & ~self.joint
        self.period = np.array([word in _PERIODS for word in lower], bool)
        self.money = np.array([word[0] in "$£€¥" or word.endswith("%") for word in lower], bool)
        self.lower = ~(self.joint | self.digit | self.name | self.count)
        self.rarity = np.array([0.0 if self.joint[i] else rarity(self.stems[i]) for i in range(n)])
        self.asked = np.array([asked.weights.get(name, 0.0) for name in self.stems])
        self.sort = np.array([bool(asked.sort_stem) and name == asked.sort_stem for name in self.stems], bool)
        self.beside = np.array([_BESIDE_AT.get(word, _CONTENT) for word in lower], np.intp)
        self.ing = np.array([word.endswith("ing") for word in lower], bool)
        self.ed = np.array([word.endswith("ed") for word in lower], bool)
        self.ly = np.array([word.endswith("ly") for word in lower], bool)


def _sums(values: npt.NDArray[np.generic]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values.astype(np.float64))])


def _spans(tokens: _Tokens) -> tuple[Ints, Ints]:
    """First and last word of every candidate."""
    good = np.flatnonzero(~tokens.joint)
    hard = np.cumsum(tokens.hard[:-1]) if len(tokens.words) else np.zeros(0)
    pairs = [
        (first, last)
        for first in good
        for last in good[(good >= first) & (good < first + MAX_WORDS)]
        if hard[last] == hard[first]
    ]
    both = np.array(pairs, np.intp).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _nearest(marked: npt.NDArray[np.bool_], first: Ints, last: Ints) -> tuple[Floats, Floats]:
    """How many words away the nearest marked word lies, left and right of each candidate."""
    n = len(marked)
    places = np.arange(n)
    left_at = np.maximum.accumulate(np.where(marked, places, -FAR))
    right_at = np.minimum.accumulate(np.where(marked, places, n + FAR)[::-1])[::-1]
    left = np.where(first > 0, first - left_at[np.maximum(first - 1, 0)], FAR)
    right = np.where(last < n - 1, right_at[np.minimum(last + 1, n - 1)] - last, FAR)
    return np.minimum(left, FAR).astype(float), np.minimum(right, FAR).astype(float)


def _signed(marked: npt.NDArray[np.bool_], first: Ints, last: Ints) -> Floats:
    """Distance to the nearest marked word, negative when it lies left."""
    left, right = _nearest(marked, first, last)
    return np.where(left <= right, -left, right)


def _of_words(tokens: _Tokens, first: Ints, last: Ints) -> dict[str, Floats]:
    """What kind of words each candidate is made of, and what stands beside it."""
    n = len(tokens.words)

    def inside(values: npt.NDArray[np.generic]) -> Floats:
        total = _sums(values)
        return total[last + 1] - total[first]

    content = inside(~tokens.joint)
    marked = tokens.asked > 0
    before = np.where(tokens.gap[first], _BREAK, tokens.beside[np.maximum(first - 1, 0)])
    after = np.where(tokens.gap[last + 1], _BREAK, tokens.beside[np.minimum(last + 1, n - 1)])
    joined_left, joined_right = ~tokens.gap[first] & (first > 0), ~tokens.gap[last + 1] & (last < n - 1)
    to_left, to_right = np.maximum(first - 1, 0), np.minimum(last + 1, n - 1)
    return {
        "words": (last - first + 1).astype(float), "characters": (tokens.ends[last] - tokens.starts[first]).astype(float), "digits": inside(tokens.digit),
        "years": inside(tokens.year), "months": inside(tokens.month), "number_words": inside(tokens.count),
        "names": inside(tokens.name), "lower": inside(tokens.lower), "joints": inside(tokens.joint),
        "periods": inside(tokens.period), "breaks": _sums(tokens.gap)[last + 1] - _sums(tokens.gap)[first + 1],
        "money": inside(tokens.money), "rarity": inside(tokens.rarity) / np.maximum(content, 1),
        "asked_inside": inside(tokens.asked), "asked_inside_share": inside(marked) / np.maximum(content, 1),
        "sort_inside": inside(tokens.sort), "ends_ing": tokens.ing[last] + 2.0 * tokens.ing[first],
        "ends_ed": tokens.ed[last] + 2.0 * tokens.ed[first], "ends_ly": tokens.ly[last] + 2.0 * tokens.ly[first],
        "begins_sentence": (first == 0).astype(float),
        "before": before.astype(float), "after": after.astype(float),
        "before_before": np.where(first > 1, tokens.beside[np.maximum(first - 2, 0)], _BREAK).astype(float),
        "name_goes_on_left": (joined_left & tokens.name[to_left]).astype(float),
        "name_goes_on_right": (joined_right & tokens.name[to_right]).astype(float),
        "content_goes_on_left": (joined_left & ~tokens.joint[to_left]).astype(float),
        "content_goes_on_right": (joined_right & ~tokens.joint[to_right]).astype(float),
        "enclosed": (tokens.hard[first] & tokens.hard[last + 1]).astype(float),
        "capital_first": tokens.name[first].astype(float),
        "next_asked_left": (joined_left & marked[to_left]).astype(float),
        "next_asked_right": (joined_right & marked[to_right]).astype(float),
        "position": first / n, "sentence_words": np.full(len(first), float(n)),
    }  # fmt: skip


def _around(tokens: _Tokens, asked: _Asked, first: Ints, last: Ints) -> dict[str, Floats]:
    """Where the question's words lie around each candidate."""
    n, total, stems = len(tokens.words), _sums(tokens.asked), np.array(tokens.stems)
    left_distance, right_distance = _nearest(tokens.asked > 0, first, last)
    clause = np.cumsum(tokens.gap[:-1])
    in_clause = np.array([tokens.asked[clause == number].sum() for number in range(int(clause[-1]) + 1)])
    whole = max(total[-1], 1e-9)

    def within(width: int) -> Floats:
        return total[np.minimum(last + 1 + width, n)] - total[np.maximum(first - width, 0)] - (total[last + 1] - total[first])

    return {
        "left_distance": left_distance, "right_distance": right_distance, "near_weight": within(3), "wide_weight": within(8),
        "left_share": total[first] / whole, "clause_share": in_clause[clause[first]] / whole,
        "after_asking_distance": _signed(stems == asked.after, first, last),
        "before_asking_distance": _signed(stems == asked.before, first, last),
        "last_asked_distance": _signed(stems == asked.last, first, last),
        "sort_distance": _signed(tokens.sort, first, last),
    }  # fmt: skip


def candidates(question: str, found: Sequence[Sentence], rarity: Rarity) -> Candidates:
    """Every candidate in the sentences `found`, with its FEATURES."""
    asked = _read_question(question, rarity)
    whole = sum(asked.weights.values()) or 1.0
    best = max((sentence.score for sentence in found), default=0.0)
    best_passage = max((sentence.passage for sentence in found), default=0.0)
    places: list[tuple[int, int, int]] = []
    blocks = [np.zeros((0, len(FEATURES)))]
    for number, sentence in enumerate(found):
        tokens = _Tokens(sentence.text, asked, rarity)
        first, last = _spans(tokens)
        if not len(first):
            continue
        has, near = set(tokens.stems), _stems(sentence.before)
        lacks = [weight for name, weight in asked.weights.items() if name not in has]
        same = {
            "kind": asked.kind, "sort": asked.sort, "asks_first": asked.asks_first, "question_words": asked.words,
            "sentence_score": sentence.score, "sentence_lead": sentence.score - best,
            "cosine": sentence.cosine, "coverage": sentence.coverage, "uncovered": max(lacks, default=0.0),
            "passage_score": sentence.passage, "passage_lead": sentence.passage - best_passage,
            "with_neighbour": sum(w for name, w in asked.weights.items() if name in has or name in near) / whole,
        }  # fmt: skip
        columns = _of_words(tokens, first, last) | _around(tokens, asked, first, last)
        columns |= {name: np.full(len(first), float(value)) for name, value in same.items()}
        blocks.append(np.column_stack([columns[name] for name in FEATURES]))
        places += [(number, int(start), int(end)) for start, end in zip(tokens.starts[first], tokens.ends[last], strict=True)]
    return Candidates(places, np.concatenate(blocks))
