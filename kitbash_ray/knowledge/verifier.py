"""The log-odds that a fact answers a question, by a model that reads both together.

MiniLM with low-rank changes (low_rank.py) and a linear head: `verifier.npz`, 16 bits. It was made
by benchmarks/fit_verifier.py from the shipped ways to ask (also with one thing swapped), from the
traps and from the obscure held-out questions; never from what people ordinarily ask. Not here: when
an answer is sure enough (calibration.py takes this as one of many features).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kitbash_ray.knowledge.encoder import Encoder
from kitbash_ray.knowledge.evidence import Candidate
from kitbash_ray.knowledge.low_rank import BETWEEN, ensure_changed, read_changes, taught

if TYPE_CHECKING:
    from kitbash_ray.config import Settings

SHIPPED = Path(__file__).with_name("verifier.npz")
#: Word pieces that are read; of a long fact the end is cut off. The training had the same limit.
MAX_TOKENS = 72


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
        self._encoder = Encoder(ensure_changed(cache_dir, changes), max_tokens=MAX_TOKENS, threads=threads)

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
    return BETWEEN.join(part for part in (question, ask, statement) if part)


def nearest_ask(candidate: Candidate) -> str:
    """The way to ask that is nearest to the question; "" for a fact without any."""
    if not candidate.asks:
        return ""
    return max(zip(candidate.cosines[1:], candidate.asks, strict=True))[1]


def taught_questions() -> frozenset[int]:
    """The questions (`question_key`) that the verifier learned from: of these it knows more than of others."""
    return taught(SHIPPED)
