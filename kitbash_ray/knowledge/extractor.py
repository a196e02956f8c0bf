"""Where in a passage the answer to a question stands, and whether it stands there, by a model that reads both together.

MiniLM with low-rank changes (low_rank.py), and linear heads for the answer's first and last token and for
whether there is one: `extractor.npz`, 16 bits. It was made by benchmarks/fit_extractor.py from questions
that people asked about encyclopedic text. Not here: which words are quoted, and how sure that is (quotes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from kitbash_ray.knowledge.encoder import Encoder, Places, Vectors
from kitbash_ray.knowledge.low_rank import BETWEEN, ensure_changed, read_changes

if TYPE_CHECKING:
    from kitbash_ray.config import Settings

SHIPPED = Path(__file__).with_name("extractor.npz")
#: Word pieces that are read of question and passage; of a longer passage the end is cut off, as in the training.
MAX_TOKENS = 320
#: The log-probability of a token that was not read, and the least of any.
LEAST = -12.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a passage.

    `answered`: the log-odds that the passage answers. `places`: where each of its tokens begins and ends.
    `begins` and `ends`: the log-probabilities that the answer begins, or ends, with that token.
    """

    answered: float
    places: Places
    begins: Floats
    ends: Floats

    def begins_at(self, first: npt.NDArray[np.intp]) -> Floats:
        """The log-probability that the answer begins with the token of each of these characters."""
        return self._of(self.begins, first)

    def ends_before(self, last: npt.NDArray[np.intp]) -> Floats:
        """The log-probability that the answer ends with the token before each of these places."""
        return self._of(self.ends, last - 1)

    def _of(self, values: Floats, characters: npt.NDArray[np.intp]) -> Floats:
        if not len(values):
            return np.full(len(characters), LEAST)
        at = self.places[:, 0].searchsorted(characters, side="right") - 1
        read = (at >= 0) & (self.places[at, 1] > characters)
        found: Floats = np.where(read, values[at], LEAST).clip(LEAST)
        return found


class Extracts(Protocol):
    """What a quotation needs of an extractor."""

    def read(self, question: str, passages: Sequence[str]) -> list[Reading]:
        """Each of `passages` beside `question`."""
        ...


class Extractor:
    """The model in this process. Safe to use from several threads."""

    def __init__(self, cache_dir: Path, *, threads: int = 2, changes: Path = SHIPPED) -> None:
        """Load it; the first time its graph is made. Raises ModelError when MiniLM's weights are missing."""
        learned = read_changes(changes)
        self._head, self._bias = learned["head.weight"], float(learned["head.bias"][0])
        self._span, self._span_bias = learned["span.weight"], learned["span.bias"]
        self._encoder = Encoder(ensure_changed(cache_dir, changes), max_tokens=MAX_TOKENS, threads=threads)

    def read(self, question: str, passages: Sequence[str]) -> list[Reading]:
        """Each of `passages` beside `question`."""
        before = question + BETWEEN
        texts = self._encoder.read_tokens([before + passage for passage in passages])
        return [self._reading(vectors, places - len(before)) for vectors, places in texts]

    def _reading(self, vectors: Vectors, places: Places) -> Reading:
        of_passage = (places[:, 0] >= 0) & (places[:, 1] > places[:, 0])
        scores = (vectors[of_passage] @ self._span.T + self._span_bias).astype(np.float64)
        begins, ends = (_log_probabilities(column) for column in scores.T)
        answered = float(vectors.mean(axis=0) @ self._head) + self._bias
        return Reading(answered, places[of_passage], begins, ends)


def open_extractor(settings: Settings) -> Extractor:
    """The extractor of the settings."""
    return Extractor(settings.cache_dir, threads=settings.embedding_threads)


def _log_probabilities(scores: Floats) -> Floats:
    if not len(scores):
        return scores
    shifted = scores - scores.max()
    found: Floats = shifted - np.log(np.exp(shifted).sum())
    return found
