"""Layer 0: a crystallized fact, by exact match in microseconds or by meaning in milliseconds.

The index can be swapped at any time; a question under way keeps the one it began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from kitbash_ray.calibration import Calibration, logistic
from kitbash_ray.knowledge.embedder import Embeds
from kitbash_ray.knowledge.encoder import Vectors
from kitbash_ray.knowledge.evidence import Comparison, rounded
from kitbash_ray.knowledge.grain_index import GrainIndex, Hit, Scope
from kitbash_ray.knowledge.text import read, stands_alone
from kitbash_ray.types import LayerResult, Query, Source


class GrainLayer:
    """Answers from a GrainIndex."""

    name = "grain"

    def __init__(self, index: GrainIndex, embedder: Embeds, calibration: Calibration) -> None:
        self.index = index
        self._embedder = embedder
        self._exact = calibration.exact
        self._fit = calibration.layers[self.name]
        #: A fit that never met a vote cannot weigh one; the vote's own log-odds come from the asks themselves.
        self._weighs_votes = self._fit.reads("vote")
        # One: what takes long here holds Python's lock anyway.
        self._thread = ThreadPoolExecutor(1, "by meaning")

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        """A grain's text, or abstains: no grain near enough, or a question that leans on others."""
        if query.history and not stands_alone(query.text):
            return LayerResult(self.name, "abstained", reason="a follow-up that does not stand on its own")
        scope = Scope(query.factions, query.cartridges)
        if exact := self.index.exact(query.text, scope):
            return self._said(exact.source, self._exact, "exact match")
        # It takes milliseconds, which an event loop that serves others must not wait.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._by_meaning, self.index, query.text, scope)

    def _by_meaning(self, index: GrainIndex, text: str, scope: Scope) -> LayerResult:
        vector = self._embedder.embed([text])[0]
        found = index.nearest(vector, scope)
        if not found:
            return LayerResult(self.name, "abstained", reason="no grain in this scope")
        voted = index.vote(vector, scope) if found[0].grain.votes else None
        # Where many ways to ask are known, "what can you do?" is one of them: no word of it need be a topic.
        if not voted and not read(text).content and not read(text).numbers:
            return LayerResult(self.name, "abstained", reason="the question names no topic")
        hit, features = _measured(text, found, voted, index)
        confidence = logistic(voted.vote) if voted and not self._weighs_votes else self._fit.confidence(features)
        source = replace(hit.grain.source, score=round(hit.cosine, 4))
        return self._said(source, confidence, f"nearest: {hit.nearest!r}", rounded(features))

    async def cosine(self, first: str, second: str) -> float:
        """How near the meanings of two texts are, by the embedder of the index."""
        vectors = await asyncio.to_thread(self._embedder.embed, [first, second])
        return float(vectors[0] @ vectors[1])

    async def embed(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        """Unit vectors of `texts`, shape (len(texts), dimensions), float32, and how many tokens were read."""
        vectors = await asyncio.to_thread(self._embedder.embed, texts)
        return vectors, await asyncio.to_thread(self._embedder.count_tokens, texts)

    @property
    def dimensions(self) -> int:
        return self._embedder.dimensions

    def _said(self, source: Source, confidence: float, reason: str, evidence: tuple[float, ...] = ()) -> LayerResult:
        return LayerResult(
            self.name,
            "answered",
            text=source.text,
            score=source.score,
            confidence=confidence,
            sources=(source,),
            reason=reason,
            evidence=evidence,
        )


def _measured(text: str, found: list[Hit], voted: Hit | None, index: GrainIndex) -> tuple[Hit, tuple[float, ...]]:
    """The hit to answer with, `voted` if there is one, and its features beside the others."""
    if voted:
        found = [voted, *(hit for hit in found if hit.grain.source.fact_id != voted.grain.source.fact_id)]
    beside = Comparison(text, [hit.candidate() for hit in found], index.rarity)
    best = 0 if voted else beside.best()
    return found[best], beside.features(best)
