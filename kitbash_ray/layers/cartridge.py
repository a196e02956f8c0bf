"""Layer 2: facts found by hybrid retrieval, put together into an answer with citations.

One fact answers alone. A question that names two things ("how do X and Y differ?") is
answered from a fact about each. Nothing is said that no fact says.
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
from kitbash_ray.knowledge.embedder import Embeds
from kitbash_ray.knowledge.evidence import Candidate, Rarity, judge, measure
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope
from kitbash_ray.knowledge.retrieval import Found, Retrieval
from kitbash_ray.knowledge.text import read, stands_alone, tokens
from kitbash_ray.types import LayerResult, Query, Source

#: Words by which a question says that it is about more than one thing.
JOINING = frozenset({"and", "or", "versus", "vs", "between", "both", "compare", "compared", "differ"})
#: Facts that are handed on to layer 4 as the ground of its answer, the most relevant first.
HANDED_ON = 5


@dataclass(frozen=True, slots=True)
class _Synthesis:
    found: tuple[Found, ...]
    confidence: float
    score: float


class CartridgeLayer:
    """Answers from a Retrieval, which can be swapped at any time."""

    name = "cartridge"

    def __init__(self, retrieval: Retrieval, index: GrainIndex, calibration: Calibration, *, embedder: Embeds) -> None:
        """`index` tells how rare a word is among the same facts."""
        self._table = retrieval, index
        self._embedder = embedder
        self._fit = calibration.layers[self.name]
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
        retrieval, index = self._table
        rarity = index.rarity
        vector = self._embedder.embed([query.text])[0]
        found = retrieval.search(query.text, vector, Scope(query.factions, query.cartridges))
        if not found:
            return LayerResult(self.name, "abstained", reason="no cartridge holds anything like it")
        best = self._single(query.text, found, rarity)
        if JOINING & set(tokens(query.text)):
            pair = self._pair(query.text, vector, found, rarity)
            best = pair if pair and pair.confidence > best.confidence else best
        cited = [_source(item) for item in best.found]
        rest = [_source(item) for item in found if item not in best.found]
        return LayerResult(
            self.name,
            "answered",
            text=_text(cited),
            score=best.score,
            confidence=best.confidence,
            sources=tuple((cited + rest)[: max(len(cited), HANDED_ON)]),
            reason=f"{len(found)} facts found, {len(cited)} cited",
        )

    def _single(self, text: str, found: list[Found], rarity: Rarity) -> _Synthesis:
        candidates = [item.grain.candidate(item.nearest, item.cosine) for item in found]
        best, features = judge(text, candidates, rarity)
        return _Synthesis((found[best],), self._fit.confidence(features), found[best].cosine)

    def _pair(self, text: str, vector: npt.NDArray[np.float32], found: list[Found], rarity: Rarity) -> _Synthesis | None:
        """The two best facts of which each has a word of the question that the other lacks."""
        asked = set(read(text).content)
        words = {item.grain.source.fact_id: asked & _words(item) for item in found}
        for first, second in sorted(combinations(found, 2), key=lambda pair: -(pair[0].cosine + pair[1].cosine)):
            ours, theirs = words[first.grain.source.fact_id], words[second.grain.source.fact_id]
            if ours - theirs and theirs - ours:
                others = [item.grain.candidate(item.nearest, item.cosine) for item in found if item not in (first, second)]
                joined = _joined(first, second, vector)
                return _Synthesis(
                    (first, second), self._fit.confidence(measure(text, [joined, *others], rarity)), joined.cosine
                )
        return None


def _joined(first: Found, second: Found, vector: npt.NDArray[np.float32]) -> Candidate:
    """Two facts as one text; its cosine is that of the sum of their vectors."""
    direction = first.vector + second.vector
    cosine = float(direction @ vector / np.linalg.norm(direction))
    grains = (first.grain, second.grain)
    return Candidate(
        " ".join(grain.source.text for grain in grains),
        tuple(ask for grain in grains for ask in grain.asks),
        f"{first.nearest} {second.nearest}",
        cosine,
    )


def _words(item: Found) -> set[str]:
    return {stem for text in (item.grain.source.text, *item.grain.asks) for stem in read(text).content}


def _source(item: Found) -> Source:
    return replace(item.grain.source, score=round(item.cosine, 4))


def _text(cited: list[Source]) -> str:
    if len(cited) == 1:
        return f"{cited[0].text} [1]"
    return " ".join(f"{source.text} [{number}]" for number, source in enumerate(cited, 1))
