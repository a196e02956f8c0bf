"""Questions whose right answer is known, and whether an answer to one is right.

A file has one JSON object a line: {"query", "expected": [fact ids], "answers": [texts], "kind"}.
An answer is right when it cites an expected fact, or says one of the answers. With neither,
the right thing is to abstain. Not here: asking (whoever has layers) and counting (evaluation.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.documents import read_lines
from kitbash_ray.knowledge.library import Contents
from kitbash_ray.knowledge.text import normalize
from kitbash_ray.types import MAX_QUERY_CHARS, Answer, LayerResult, Source, is_visible

_CITED = re.compile(r"\[(\d{1,2})\]")


class Question(Struct, frozen=True, forbid_unknown_fields=True):
    """A question, the facts or texts that answer it, and of what kind it is ("" if nobody said).

    `refused` is a fact that is known to be a wrong answer, when the right one is not known.
    """

    query: str
    expected: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    kind: str = ""
    refused: str | None = None

    @property
    def answerable(self) -> bool:
        return bool(self.expected or self.answers)

    def right(self, said: LayerResult | Answer) -> bool:
        """Whether what a layer or the whole cascade answered, or would have, is right."""
        text = said.text if isinstance(said, LayerResult) else (said.answer or said.candidate)
        if any(source.fact_id in self.expected for source in cited(text or "", said.sources)):
            return True
        return any(_says(text or "", answer) for answer in self.answers)


class _Line(Question, frozen=True, forbid_unknown_fields=True):
    """A question with what people note beside it: the fact it was made from, and how."""

    of: str | None = None
    change: str | None = None


def question_key(query: str) -> int:
    """A number by which the same question is known in several sets; 56 bits."""
    return int.from_bytes(hashlib.blake2b(query.encode(), digest_size=7).digest(), "big")


def cited(text: str, sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """The sources that `text` cites by number; if it cites none, those that it quotes whole."""
    numbers = [int(number) for number in _CITED.findall(text)]
    found = tuple(sources[number - 1] for number in numbers if 0 < number <= len(sources))
    return found or tuple(source for source in sources if source.text in text)


def read_questions(path: Path) -> list[Question]:
    """The questions in `path`. Raises CartridgeError with file, line and what is wrong."""
    found: list[Question] = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            question = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise CartridgeError(
                f"{path}:{number}: {error}; a line is an object with query, expected, answers, kind."
            ) from error
        if not is_visible(question.query) or len(question.query) > MAX_QUERY_CHARS:
            raise CartridgeError(f"{path}:{number}: the query is empty or longer than {MAX_QUERY_CHARS} characters.")
        found.append(question)
    if not found:
        raise CartridgeError(f"{path}: there is no question in it.")
    return found


def held_out(contents: Contents, factions: Iterable[str] = ("general",)) -> list[Question]:
    """The held-out questions of the cartridges of these factions."""
    wanted = set(factions)
    return [
        Question(entry.query, entry.expected, (), entry.kind)
        for cartridge in contents.cartridges
        if cartridge.manifest.faction in wanted
        for entry in cartridge.questions
    ]


def _says(text: str, answer: str) -> bool:
    """Whether `text` has the words of `answer` in a row."""
    return f" {normalize(answer)} " in f" {normalize(text)} "
