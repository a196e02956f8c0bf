"""Fakes that ship: layers, an engine and an embedder without a model.

For the tests here and for whoever writes a layer or an engine of their own. Each fake is a
plain class behind the same protocol as the real thing and says what it was asked.
Not here: a fake Redis or a fake Ray; tests start a real one.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kitbash_ray.engines.base import Finish, Piece, Sampling
from kitbash_ray.engines.stopper import Stopper
from kitbash_ray.errors import LayerError
from kitbash_ray.knowledge.text import tokens
from kitbash_ray.types import LayerResult, Message, Query, Usage

#: What a scripted layer does at one step: show a piece, end with a result, or raise.
Scripted = str | LayerResult | Exception


class EchoLayer:
    """Answers every question with itself."""

    def __init__(self, name: str = "echo", *, confidence: float | None = 1.0) -> None:
        self.name = name
        self.confidence = confidence
        self.asked: list[Query] = []

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        self.asked.append(query)
        return LayerResult(self.name, "answered", text=query.text, score=self.confidence, confidence=self.confidence)


class FailingLayer:
    """Raises `error` at every question."""

    def __init__(self, name: str = "failing", error: Exception | None = None) -> None:
        self.name = name
        self.error = error or LayerError("this layer always fails")
        self.asked: list[Query] = []

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        self.asked.append(query)
        raise self.error


class SlowLayer:
    """Answers once `release` is set. `started` and `cancelled` can be awaited."""

    def __init__(self, name: str = "slow", *, confidence: float | None = 1.0) -> None:
        self.name = name
        self.confidence = confidence
        self.started, self.release, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return LayerResult(self.name, "answered", text="at last", confidence=self.confidence)


class ScriptedLayer:
    """Gives `script` item by item, one for each question, the last one again and again."""

    def __init__(self, name: str, *script: LayerResult | Exception) -> None:
        self.name = name
        self.script = script
        #: What it was asked, with the results that the layers before it had given.
        self.asked: list[tuple[Query, tuple[LayerResult, ...]]] = []

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        step = self.script[min(len(self.asked), len(self.script) - 1)]
        self.asked.append((query, so_far))
        if isinstance(step, Exception):
            raise step
        return step


class ScriptedStreamingLayer:
    """Streams the whole `script` at each question. `closed` is set when its stream has ended."""

    def __init__(self, name: str, *script: Scripted) -> None:
        self.name = name
        self.script = script
        self.closed = asyncio.Event()
        self.asked: list[tuple[Query, tuple[LayerResult, ...]]] = []

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> AsyncGenerator[str | LayerResult, None]:
        self.asked.append((query, so_far))
        self.closed.clear()
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                yield step
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        async for item in self.stream(query, so_far):
            if isinstance(item, LayerResult):
                return item
        raise LayerError(f"the script of {self.name} has no result")


class ScriptedEngine:
    """A text engine that always says `pieces`, each as sure as `probability`."""

    takes_tools = False
    keeps_schema = False

    def __init__(self, *pieces: str, probability: float = 0.5, context_tokens: int = 100_000) -> None:
        self.name = "scripted"
        self.pieces = pieces
        #: The messages that it was given, generation by generation.
        self.heard: list[tuple[Message, ...]] = []
        self._window = context_tokens
        self._logprob = math.log(probability)

    async def context_tokens(self) -> int:
        return self._window

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        self.heard.append(tuple(messages))
        read = await self.count_tokens(messages)
        if read + sampling.max_tokens > self._window:
            raise LayerError(f"The prompt does not fit a window of {self._window} tokens.")
        stopper, said = Stopper(sampling.stop), 0
        for text in self.pieces[: sampling.max_tokens]:
            said += 1
            if (told := stopper.take(Piece(text, (self._logprob,)))) is not None:
                yield told
            if stopper.stopped:
                break
        finish: Finish = "stop" if stopper.stopped or said == len(self.pieces) else "length"
        yield replace(stopper.rest(), finish=finish, usage=Usage(read, said))


class HashEmbedder:
    """Unit vectors from hashes of a text's words, so texts that share words are near each other.

    Says nothing of meaning. `embedded` lists every text that it was asked for, in order.
    """

    def __init__(self, dimensions: int = 64) -> None:
        self.dimensions = dimensions
        self.model_id = f"hash-{dimensions}"
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors of `texts`, shape (len(texts), dimensions), float32."""
        self.embedded += texts
        rows = [self._direction(text) for text in texts]
        return np.array(rows, np.float32).reshape(len(texts), self.dimensions)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many words they have."""
        return sum(len(tokens(text)) for text in texts)

    def _direction(self, text: str) -> npt.NDArray[np.float64]:
        total = sum((self._word(word) for word in tokens(text) or [text]), np.zeros(self.dimensions))
        unit: npt.NDArray[np.float64] = total / np.linalg.norm(total)
        return unit

    def _word(self, word: str) -> npt.NDArray[np.float64]:
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.random.default_rng(seed).standard_normal(self.dimensions)
