"""Layer 2: facts found by hybrid retrieval, put together into an answer with citations.

One fact answers alone: of the likeliest the one that, read beside the question, answers it best. Of a
passage the sentence that answers is quoted. A question that names two things ("how do X and Y differ?")
is answered from a fact about each. Nothing is said that no fact says.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.knowledge.embedder import Embeds
from kitbash_ray.knowledge.evidence import Comparison, Rarity, rounded
from kitbash_ray.knowledge.extractor import Extracts, open_extractor
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope
from kitbash_ray.knowledge.quotes import Quote, QuoteFit, load_quote_fit, quote
from kitbash_ray.knowledge.retrieval import Found, Retrieval
from kitbash_ray.knowledge.text import read, stands_alone, tokens
from kitbash_ray.knowledge.verifier import Verifies, open_verifier
from kitbash_ray.types import LayerResult, Query, Source

#: Words by which a question says that it is about more than one thing.
JOINING = frozenset({"and", "or", "versus", "vs", "between", "both", "compare", "compared", "differ"})
#: Those that stand between the two things.
BETWEEN = frozenset({"and", "or", "versus", "vs"})
ARTICLES = frozenset({"a", "an", "the", "of"})
#: Facts that are handed on to layer 4 as the ground of its answer, the most relevant first.
HANDED_ON = 5
#: Facts that are read together with the question, which takes milliseconds each.
READ_TOGETHER = 3
#: What log-odds of 1 add to a cosine: of 1,817 ordinary questions 92 % find their fact first, without it 90 %;
#: from 0.01 to 0.04 it makes little difference.
ODDS_WEIGHT = 0.02

Vector = npt.NDArray[np.float32]
Table = tuple[Retrieval, GrainIndex]


@dataclass(frozen=True, slots=True)
class _Cited:
    """A fact that is cited, and what is quoted of it if it is a passage."""

    found: Found
    quote: Quote | None = None

    @property
    def said(self) -> str:
        return self.quote.sentence if self.quote else self.found.grain.source.text


@dataclass(frozen=True, slots=True)
class _Synthesis:
    cited: tuple[_Cited, ...]
    confidence: float
    score: float
    evidence: tuple[float, ...] = ()


class CartridgeLayer:
    """Answers from a Retrieval, which can be swapped at any time."""

    name = "cartridge"

    def __init__(
        self,
        retrieval: Retrieval,
        index: GrainIndex,
        calibration: Calibration,
        *,
        embedder: Embeds,
        verifier: Verifies,
        extractor: Extracts,
    ) -> None:
        """`index` tells how rare a word is among the same facts."""
        self._table = retrieval, index
        self._verifier, self._extractor = verifier, extractor
        self._embedder = embedder
        self._fit = calibration.layers[self.name]
        self._quotes: QuoteFit = load_quote_fit()
        self._thread = ThreadPoolExecutor(2, "cartridge")

    def swap(self, retrieval: Retrieval, index: GrainIndex) -> None:
        """Answer from another table from the next question on."""
        self._table = retrieval, index

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        """Facts with citations, or abstains. `sources` are the facts found, also when unsure."""
        if query.history and not stands_alone(query.text):
            return LayerResult(self.name, "abstained", reason="a follow-up that does not stand on its own")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._answer, query)

    def _answer(self, query: Query) -> LayerResult:
        table, scope = self._table, Scope(query.factions, query.cartridges)
        vector, found = self._search(query.text, scope, table)
        if not found:
            return LayerResult(self.name, "abstained", reason="no cartridge holds anything like it")
        best = self._single(query.text, found, table[1].rarity)
        if JOINING & set(tokens(query.text)):
            pair = self._pair(query.text, vector, found, scope, table)
            best = pair if pair and pair.confidence > best.confidence else best
        cited = [_source(item.found, item.quote) for item in best.cited]
        rest = [_source(item) for item in found if item.grain.source.fact_id not in {source.fact_id for source in cited}]
        return LayerResult(
            self.name,
            "answered",
            text=_text(best.cited),
            score=best.score,
            confidence=best.confidence,
            sources=tuple((cited + rest)[: max(len(cited), HANDED_ON)]),
            reason=f"{len(found)} facts found, {len(cited)} cited",
            evidence=best.evidence,
        )

    def _search(self, text: str, scope: Scope, table: Table) -> tuple[Vector, list[Found]]:
        vector: Vector = self._embedder.embed([text])[0]
        return vector, table[0].search(text, vector, scope)

    def _single(self, text: str, found: list[Found], rarity: Rarity) -> _Synthesis:
        candidates = [item.candidate() for item in found]
        beside = Comparison(text, candidates, rarity)
        first, *others = sorted(range(len(found)), key=beside.orders.__getitem__, reverse=True)[:READ_TOGETHER]
        if found[first].sentences:
            passages = [item for item in found if item.sentences]
            said = quote(text, passages, rarity, self._quotes, self._extractor)
            if said:
                return _Synthesis((_Cited(said.found, said),), said.confidence, said.found.cosine)
        likely = [first, *(at for at in others if not found[at].sentences)]
        odds = self._verifier.log_odds(text, [candidates[at] for at in likely])
        best, verified = max(zip(likely, odds, strict=True), key=lambda read: beside.orders[read[0]] + ODDS_WEIGHT * read[1])
        features = beside.features(best, verified)
        cited = (_Cited(found[best]),)
        return _Synthesis(cited, self._fit.confidence(features), found[best].cosine, rounded(features))

    def _pair(self, text: str, vector: Vector, found: list[Found], scope: Scope, table: Table) -> _Synthesis | None:
        """A fact about each of two things: the question is asked again without the words of the one and of the other.

        Both have to be right, so the confidence is the product.
        """
        halves = _halves(text, vector, found)
        if halves is None:
            return None
        answers = []
        for half in halves:
            _, again = self._search(half, scope, table)
            if not again:
                return None
            answers.append(self._single(half, again, table[1].rarity))
        first, second = answers
        if first.cited[0].found.grain.source.fact_id == second.cited[0].found.grain.source.fact_id:
            return None
        return _Synthesis(first.cited + second.cited, first.confidence * second.confidence, min(first.score, second.score))


def open_cartridge(
    retrieval: Retrieval, index: GrainIndex, calibration: Calibration, embedder: Embeds, settings: Settings
) -> CartridgeLayer:
    """The layer with the models of the settings. Raises ModelError when one of them cannot be loaded."""
    return CartridgeLayer(
        retrieval,
        index,
        calibration,
        embedder=embedder,
        verifier=open_verifier(settings),
        extractor=open_extractor(settings),
    )


def _halves(text: str, vector: Vector, found: list[Found]) -> tuple[str, str] | None:
    """The question without what only the second fact speaks of, and without what only the first does.

    The two facts are those whose vectors together are nearest, among those of which each has a
    word of the question that the other lacks; what joins the two things stands between these words.
    """
    asked = set(read(text).content)
    words = {item.grain.source.fact_id: asked & _words(item) for item in found}
    for first, second in sorted(combinations(found, 2), key=lambda pair: -_together(pair, vector)):
        ours, theirs = words[first.grain.source.fact_id], words[second.grain.source.fact_id]
        if ours - theirs and theirs - ours and _apart(text, ours - theirs, theirs - ours):
            return _without(text, theirs - ours), _without(text, ours - theirs)
    return None


def _apart(text: str, ours: set[str], theirs: set[str]) -> bool:
    """Whether an "and" stands between the words of these stems and of those, if there is one at all."""
    words = text.split()
    joined = [at for at, word in enumerate(words) if word.strip(",").lower() in BETWEEN]
    here, there = ([at for at, word in enumerate(words) if stems & set(read(word).content)] for stems in (ours, theirs))
    if not joined or not here or not there:
        return not joined
    return any(max(here) < at < min(there) or max(there) < at < min(here) for at in joined)


def _together(pair: tuple[Found, Found], vector: Vector) -> float:
    """The cosine of the question and the sum of two facts."""
    direction: Vector = pair[0].vector + pair[1].vector
    return float(direction @ vector / np.linalg.norm(direction))


def _without(text: str, stems: set[str]) -> str:
    """`text` without the words of these stems, their articles, and what joined them to the rest."""
    kept: list[str] = []
    for word in text.split():
        if stems & set(read(word).content) or word.strip(",").lower() in JOINING:
            while kept and kept[-1].lower() in ARTICLES:
                kept.pop()
        else:
            kept.append(word)
    return " ".join(kept)


def _words(item: Found) -> set[str]:
    return {stem for text in (item.grain.source.text, *item.grain.asks) for stem in read(text).content}


def _source(item: Found, said: Quote | None = None) -> Source:
    return replace(item.grain.source, score=round(item.cosine, 4), quote=said.words if said else None)


def _text(cited: tuple[_Cited, ...]) -> str:
    return " ".join(f"{item.said} [{number}]" for number, item in enumerate(cited, 1))
