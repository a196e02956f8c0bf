"""Running text, cut at the ends of sentences into passages of at most PASSAGE_CHARS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kitbash_ray.knowledge.documents import read_lines

#: A passage that is cut from running text is no longer than this; MiniLM reads about as much.
PASSAGE_CHARS = 800
#: A paragraph of plain text is cut here, so that a file without empty lines does not fill memory.
PARAGRAPH_CHARS = 100_000

_CUT = re.compile(r"[.!?…][\"'”’)\]]*\s|[。！？]|\n")

#: A line number, and the members of a PassageEntry as the file has them.
Raw = tuple[int, dict[str, Any]]


def read_prose(source: Path) -> Iterator[Raw]:
    for line, paragraph in _paragraphs(source):
        for text in fit(" ".join(paragraph.split())):
            if says_something(text):
                yield line, {"text": text}


def _paragraphs(source: Path) -> Iterator[tuple[int, str]]:
    start, size, held = 1, 0, list[str]()
    for number, line in read_lines(source):
        if held and (not line.strip() or size > PARAGRAPH_CHARS):
            yield start, "\n".join(held)
            size, held = 0, []
        if line.strip():
            start = start if held else number
            size += len(line)
            held.append(line)
    if held:
        yield start, "\n".join(held)


def fit(text: str, limit: int = PASSAGE_CHARS) -> Iterator[str]:
    """`text` in pieces of at most `limit`: cut after a sentence or line, else between words, else anywhere."""
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        cut = max((match.end() for match in _CUT.finditer(window)), default=0) or window.rfind(" ") + 1 or limit
        yield window[:cut].strip()
        start += cut
    if text[start:].strip():
        yield text[start:].strip()


def says_something(text: str) -> bool:
    return any(char.isalnum() for char in text)
