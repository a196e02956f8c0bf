"""Held-out questions to a student alone: what it says, whatever its confidence, and how long that takes. Needs no PyTorch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kitbash_ray.layers.bitnet import StudentLayer
from kitbash_ray.learn.manifest import Scores
from kitbash_ray.questions import Question
from kitbash_ray.types import LayerResult, Query


@dataclass(frozen=True, slots=True)
class Said:
    """What layer 1 made of a question, the tokens that it wrote, and milliseconds."""

    result: LayerResult
    tokens: int
    ms: float


def examine(
    layer: StudentLayer, questions: Sequence[Question], report: Callable[[int, int], None] = lambda done, of: None
) -> tuple[Scores, list[Said]]:
    """What the student says to each question, and how much of it is right."""
    heard = asyncio.run(_ask_all(layer, questions, report))
    counts = dict.fromkeys(Scores.__struct_fields__, 0)
    for question, said in zip(questions, heard, strict=True):
        counts[_verdict(question, said.result)] += 1
    return Scores(**counts), heard


async def _ask_all(layer: StudentLayer, questions: Sequence[Question], report: Callable[[int, int], None]) -> list[Said]:
    heard = []
    for number, question in enumerate(questions, 1):
        began = time.perf_counter()
        result = await layer.answer(Query(question.query))
        written = result.generation.usage.completion_tokens if result.generation else 0
        heard.append(Said(result, written, 1000 * (time.perf_counter() - began)))
        report(number, len(questions))
    return heard


def _verdict(question: Question, said: LayerResult) -> str:
    answered = said.outcome == "answered"
    if not question.answerable:
        return "answered" if answered else "refused"
    if not answered:
        return "declined"
    return "right" if question.right(said) else "wrong"
