"""The log-odds that a fact answers a question, by a model that reads both together.

MiniLM with low-rank changes to its blocks and a linear head: `verifier.npz`, 16 bits. It was made
by benchmarks/fit_verifier.py from the shipped ways to ask (also with one thing swapped), from the
traps and from the obscure held-out questions; never from what people ordinarily ask.
The changes are merged into MiniLM's weights once, and the result runs as MiniLM does. Not here: when
an answer is sure enough (calibration.py takes this as one of many features).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from kitbash_ray.knowledge.encoder import Encoder
from kitbash_ray.knowledge.evidence import Candidate
from kitbash_ray.knowledge.minilm import ensure_encoder, read_weights

if TYPE_CHECKING:
    from kitbash_ray.config import Settings

SHIPPED = Path(__file__).with_name("verifier.npz")
#: The matrices of a block that have changes.
MATRICES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
#: The array of the questions that it learned from.
SEEN = "seen"
#: Word pieces that are read; of a long fact the end is cut off. The training had the same limit.
MAX_TOKENS = 72

Changes = Mapping[str, npt.NDArray[np.float32]]


class Verifies(Protocol):
    """What layer 2 needs of a verifier."""

    def log_odds(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Of each of `candidates`: that it answers `question`."""
        ...


class Verifier:
    """The model in this process. Safe to use from several threads."""

    def __init__(self, cache_dir: Path, *, threads: int = 2, changes: Path = SHIPPED) -> None:
        """Load it; the first time its graph is made. Raises ModelError when MiniLM's weights are missing."""
        learned = read_changes(changes)
        self._head, self._bias = learned["head.weight"], float(learned["head.bias"][0])
        self._encoder = Encoder(ensure_verifier(cache_dir, changes), max_tokens=MAX_TOKENS, threads=threads)

    def log_odds(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Of each of `candidates`: that it answers `question`. Above 0 it rather does."""
        pairs = [side_by_side(question, item.text, nearest_ask(item)) for item in candidates]
        odds: list[float] = (self._encoder.read(pairs) @ self._head + self._bias).tolist()
        return odds


def open_verifier(settings: Settings) -> Verifier:
    """The verifier of the settings."""
    return Verifier(settings.cache_dir, threads=settings.embedding_threads)


def side_by_side(question: str, statement: str, ask: str) -> str:
    """The one text that is read. The statement comes last because a long text loses its end."""
    return " || ".join(part for part in (question, ask, statement) if part)


def nearest_ask(candidate: Candidate) -> str:
    """The way to ask that is nearest to the question; "" for a fact without any."""
    if not candidate.asks:
        return ""
    return max(zip(candidate.cosines[1:], candidate.asks, strict=True))[1]


def ensure_verifier(cache_dir: Path, changes: Path = SHIPPED) -> Path:
    """The path of the graph, made now if it is not there yet. Its name has the hash of `changes` in it."""
    digest = hashlib.blake2b(changes.read_bytes(), digest_size=6).hexdigest()
    return ensure_encoder(cache_dir, f"verifier-{digest}", lambda: with_changes(read_weights(), read_changes(changes)))


def read_changes(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of a file like `verifier.npz`."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.float32) for name in stored.files if name != SEEN}


def taught_questions(path: Path = SHIPPED) -> frozenset[int]:
    """The questions (`question_key`) that the verifier learned from: of these it knows more than of others."""
    with np.load(path, allow_pickle=False) as stored:
        return frozenset(stored[SEEN].tolist())


def with_changes(weights: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """MiniLM's weights with the changes added: each is the product of a tall and a wide matrix."""
    merged = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    for name in changes:
        if name.endswith(".up"):
            matrix = f"encoder.layer.{name.removesuffix('.up')}.weight"
            merged[matrix] = merged[matrix].astype(np.float32) + changes[name] @ changes[name.removesuffix("up") + "down"]
    return merged
