"""Held-out questions to a student alone, through llama.cpp: what it says, and how long that takes. Needs no PyTorch."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kitbash_ray.engines.llama_cpp import load_gguf
from kitbash_ray.layers.known_answers import KnownAnswers
from kitbash_ray.learn.manifest import Scores
from kitbash_ray.learn.tokenizer import ANSWER, QUESTION, SPECIAL, asked
from kitbash_ray.questions import Question
from kitbash_ray.types import Source

#: Tokens of a question that are read, and of an answer that are written until it must be known.
LONGEST_QUESTION, LONGEST_ANSWER = 400, 64


@dataclass(frozen=True, slots=True)
class Said:
    """The fact that an answer began, None if it began none; the tokens written, and milliseconds."""

    source: Source | None
    tokens: int
    ms: float


class Pupil:
    """A student in a file, asked one question after another."""

    def __init__(self, model: Path, answers: KnownAnswers, *, threads: int = 1) -> None:
        """Load `model`. Raises ModelError."""
        self._llama = load_gguf(model, n_ctx=512, n_threads=threads, n_threads_batch=threads)
        self._answers = answers
        self._end = int(self._llama.token_eos())

    def prompt(self, question: str) -> list[int]:
        """The tokens that the student goes on from, by the chat template's rule."""
        text = asked(question)
        for name in SPECIAL:
            text = text.replace(name, " ")
        found = self._llama.tokenize(f"{QUESTION}{text}{ANSWER}".encode(), add_bos=False, special=True)
        return [*found[:LONGEST_QUESTION], found[-1]] if len(found) > LONGEST_QUESTION else list(found)

    def ask(self, question: str) -> Said:
        """What it says to `question`: only as many tokens as tell one fact from all others."""
        start = time.perf_counter()
        prompt, decoder = self.prompt(question), codecs.getincrementaldecoder("utf-8")(errors="replace")
        text, source, written = "", None, 0
        self._llama.reset()
        for token in self._llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if token == self._end or written >= LONGEST_ANSWER:
                break
            written += 1
            text += decoder.decode(self._llama.detokenize([token]))
            source = self._answers.complete(text)
            if source or not self._answers.begins_any(text):
                break
        return Said(source, written, 1000 * (time.perf_counter() - start))


def examine(
    pupil: Pupil, questions: Sequence[Question], report: Callable[[int, int], None] | None = None
) -> tuple[Scores, list[Said]]:
    """What the student says to each question, and how much of it is right."""
    counts = dict.fromkeys(Scores.__struct_fields__, 0)
    heard = []
    for number, question in enumerate(questions, 1):
        said = pupil.ask(question.query)
        heard.append(said)
        counts[_verdict(question, said.source)] += 1
        if report:
            report(number, len(questions))
    return Scores(**counts), heard


def _verdict(question: Question, source: Source | None) -> str:
    if not question.answerable:
        return "answered" if source else "refused"
    if source is None:
        return "declined"
    return "right" if source.fact_id in question.expected else "wrong"
