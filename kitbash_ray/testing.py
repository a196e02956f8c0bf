"""Fakes that ship: layers, an engine and an embedder without a model, and a tiny real GGUF.

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
from pathlib import Path
from typing import Any

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


#: The shape of the tiny model. It has seen no text: what it writes is random, but repeatable.
TINY_EMBED, TINY_HEADS, TINY_BLOCKS, TINY_FEED_FORWARD, TINY_CONTEXT = 64, 4, 2, 128, 4096
TINY_WORDS = """the cell water light energy sun leaf root stone river cloud bird fish tree seed salt iron wave sound
    heat cold north south moon star wind rain snow sand fire glass paper ink wheel clock bell door roof wall""".split()


def write_tiny_gguf(path: Path, *, seed: int = 0, weights: str = "F32", blocks: int = TINY_BLOCKS) -> Path:
    """Write a random model of architecture `llama` to `path`: under a megabyte, real llama.cpp.

    With more `blocks` it is larger and slower. `weights` is the ggml type of its matrices, F32 or one that takes rows of 64 (Q8_0, Q4_0). Its tokens are the 256 bytes and `TINY_WORDS`; it writes only the words and ends by length.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(TINY_CONTEXT)
    writer.add_embedding_length(TINY_EMBED)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(TINY_FEED_FORWARD)
    writer.add_head_count(TINY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(TINY_EMBED // TINY_HEADS)
    size = _add_tiny_vocabulary(writer)
    kind = gguf.GGMLQuantizationType[weights]
    for name, tensor in _tiny_tensors(size, blocks, np.random.default_rng(seed)):
        if tensor.ndim == 2 and weights != "F32":
            writer.add_tensor(name, gguf.quants.quantize(tensor.astype(np.float32), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tiny_vocabulary(writer: Any) -> int:
    """SentencePiece tokens: three special ones, every byte, and whole words. Returns how many."""
    import gguf

    kinds = gguf.TokenType
    entries = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    entries += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    entries += [("\u2581" + word, kinds.NORMAL) for word in TINY_WORDS]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in entries])
    writer.add_token_scores([0.0] * len(entries))
    writer.add_token_types([kind for _, kind in entries])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    return len(entries)


def _tiny_tensors(size: int, blocks: int, random: np.random.Generator) -> list[tuple[str, npt.NDArray[np.float64]]]:
    wide, deep = TINY_EMBED, TINY_FEED_FORWARD
    output = random.standard_normal((size, wide))
    output[: size - len(TINY_WORDS)] = 0.0  # only words have a chance to be the next token
    tensors = [
        ("token_embd.weight", random.standard_normal((size, wide))),
        ("output_norm.weight", np.ones(wide)),
        ("output.weight", output),
    ]
    shapes = {
        "attn_q": (wide, wide), "attn_k": (wide, wide), "attn_v": (wide, wide), "attn_output": (wide, wide),
        "ffn_gate": (deep, wide), "ffn_up": (deep, wide), "ffn_down": (wide, deep),
    }  # fmt: skip
    for block in range(blocks):
        tensors += [(f"blk.{block}.{name}.weight", np.ones(wide)) for name in ("attn_norm", "ffn_norm")]
        tensors += [
            (f"blk.{block}.{name}.weight", random.standard_normal(shape) / math.sqrt(shape[1]))
            for name, shape in shapes.items()
        ]
    return tensors
