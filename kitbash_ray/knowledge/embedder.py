"""Text to unit vectors: by MiniLM under ONNX Runtime, or by any embedding GGUF under llama.cpp.

Not here: caching (library.py keeps the vectors of facts) and pooling models over devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from kitbash_ray.engines.compute import compute
from kitbash_ray.errors import ModelError
from kitbash_ray.knowledge.encoder import Encoder, Vectors
from kitbash_ray.knowledge.minilm import ensure_minilm

if TYPE_CHECKING:
    from kitbash_ray.config import Settings

#: Characters of a text that are looked at; MiniLM reads 256 word pieces at the most.
MAX_CHARS = 2000
MAX_TOKENS = 256


class Embeds(Protocol):
    """What the index and the retrieval need of an embedder."""

    model_id: str
    dimensions: int

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, shape (len(texts), dimensions), float32."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens are read of all of them."""
        ...


class Embedder:
    """MiniLM, or another encoder of bert_graph.py, in this process. Safe to use from several threads."""

    def __init__(self, model: Path, *, threads: int = 2) -> None:
        """Load `model`. Raises ModelError when it is no such graph."""
        self._encoder = Encoder(model, max_tokens=MAX_TOKENS, threads=threads)
        self.model_id = _model_id(model)
        self.dimensions = self._encoder.dimensions

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of `texts`, shape (len(texts), dimensions), float32."""
        vectors = self._encoder.read([text[:MAX_CHARS] for text in texts])
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many word pieces are read of all of `texts`."""
        return self._encoder.count_tokens([text[:MAX_CHARS] for text in texts])


class GgufEmbedder:
    """An embedding GGUF in this process. Its one context is not thread-safe: callers wait for engines/compute.py."""

    def __init__(self, model: Path, *, threads: int = 2) -> None:
        """Load `model`. Raises ModelError when it is no embedding GGUF."""
        from kitbash_ray.engines.llama_cpp import load_gguf

        self._llama = load_gguf(
            model,
            embedding=True,
            n_ctx=MAX_TOKENS,
            n_batch=MAX_TOKENS,
            n_ubatch=MAX_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
        )
        self.model_id = _model_id(model)
        self.dimensions = int(self._llama.n_embd())
        if not self._usable():
            raise ModelError(f"{model} gives no usable embeddings; set EMBEDDING_MODEL to an embedding GGUF.")

    def _usable(self) -> bool:
        try:
            probe = self.embed(["a probe of several tokens"])
        except (ValueError, RuntimeError, TypeError):  # a text model gives a vector for each token
            return False
        return probe.shape == (1, self.dimensions) and bool(np.isfinite(probe).all())

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of `texts`, shape (len(texts), dimensions), float32."""
        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        # One by one: a batch shares one attention window, which costs more than it saves on a CPU.
        return np.asarray([self._embed_one(text[:MAX_CHARS].strip() or ".") for text in texts], np.float32)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens are read of all of `texts`."""
        return sum(min(len(self._llama.tokenize(text[:MAX_CHARS].encode())), MAX_TOKENS) for text in texts)

    def _embed_one(self, text: str) -> list[float]:
        return cast(list[float], compute(lambda: self._llama.embed(text, normalize=True, truncate=True)))


def open_embedder(settings: Settings) -> Embeds:
    """The embedder of the settings; makes MiniLM's graph first where none is configured."""
    if settings.embedding_model:
        return GgufEmbedder(settings.embedding_model, threads=settings.embedding_threads)
    return Embedder(ensure_minilm(settings.cache_dir), threads=settings.embedding_threads)


def _model_id(model: Path) -> str:
    """A name for the model's vectors: its name, size and the hash of its ends."""
    with model.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(0, model.stat().st_size - (1 << 16)))
        digest = hashlib.blake2b(head + file.read(), digest_size=6).hexdigest()
    return f"{model.stem}-{digest}"
