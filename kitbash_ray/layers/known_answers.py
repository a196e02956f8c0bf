"""The texts that a student was taught, and which of them it has begun to write.

A student only has to begin an answer: once a beginning belongs to one known text alone, the text is
given whole, with its source. What begins no known text is no answer. Not here: generating.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from kitbash_ray.errors import ModelError
from kitbash_ray.types import Source

#: Sorts after every character that a text may go on with.
AFTER_ALL = chr(0x10FFFF)


class KnownAnswers:
    """Texts with their sources, sorted. Of two sources with the same text the first one counts."""

    def __init__(self, sources: Sequence[Source]) -> None:
        first: dict[str, Source] = {}
        for source in sources:
            first.setdefault(source.text, source)
        self._texts = sorted(first)
        self._sources = [first[text] for text in self._texts]

    def __len__(self) -> int:
        return len(self._texts)

    def complete(self, text: str) -> Source | None:
        """The source whose text begins with `text`, if there is exactly one; none of an empty text."""
        start, end = self._range(text)
        return self._sources[start] if text and end - start == 1 else None

    def begins_any(self, text: str) -> bool:
        """Whether a known text begins with `text`."""
        start, end = self._range(text)
        return end > start

    def _range(self, text: str) -> tuple[int, int]:
        """Where the texts lie that begin with `text`: from the first number up to the second."""
        start = bisect_left(self._texts, text)
        return start, bisect_left(self._texts, text + AFTER_ALL, lo=start)


class _Line(Struct, frozen=True):
    """One line of answers.jsonl."""

    cartridge: str
    fact_id: str
    text: str
    reference: str | None = None


def write_answers(path: Path, sources: Iterable[Source]) -> None:
    """Write what a student was taught, one JSON object a line."""
    lines = [_Line(source.cartridge, source.fact_id, source.text, source.reference) for source in sources]
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_answers(path: Path) -> list[Source]:
    """The inverse of `write_answers`; the score, which is the question's, is 1. Raises ModelError."""
    try:
        lines = msgspec.json.decode(b"[" + b",".join(path.read_bytes().splitlines()) + b"]", type=list[_Line])
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"{str(path)!r} does not hold a student's answers; run `kitbash distil` again.") from error
    return [Source(line.cartridge, line.fact_id, line.text, 1.0, line.reference) for line in lines]
