"""The ternary student of layer 1 in llama.cpp: is it the model that was trained, is it fast, is it right?

Agreement: held-out questions with the text of the fact that answers, teacher-forced; the likeliest next
token by llama.cpp against that by the fake-quantized PyTorch model in float32, whose weights are read back
from the same file. Speed: the same weights as TQ2_0, Q8_0 and F16, in turn, on one thread. Then what the
student alone says to held-out questions. Needs the extra `train`.

    python -m benchmarks.bitnet [--quick] [--student FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import finish, percentile, print_table
from kitbash_ray.cascade import Cascade
from kitbash_ray.config import load_settings
from kitbash_ray.direct import Direct, cascade_over
from kitbash_ray.engines.llama_cpp import LlamaCpp, load_gguf
from kitbash_ray.evaluation import Judged, Score, judge, score
from kitbash_ray.knowledge.library import Contents, Library
from kitbash_ray.layers.bitnet import EXACT, SHIPPED, open_student
from kitbash_ray.learn.exam import examine
from kitbash_ray.learn.export import export, read_student, read_vocabulary
from kitbash_ray.learn.manifest import MODEL
from kitbash_ray.learn.student import Student
from kitbash_ray.questions import Question, held_out
from kitbash_ray.types import Message, Query

KINDS = ("TQ2_0", "Q8_0", "F16")
#: Tokens that are compared, and decoded a round.
COMPARED, DECODED = 1000, 200
#: Tokens of an answer that nearly every example teaches; few teach the rest.
BEGINNING = 6
TARGETS = {
    "top1_agreement": (">=", 0.99),
    "decode_speed_vs_q8_0": (">=", 1.5),
    "bytes_vs_f16_without_embeddings": ("<=", 0.25),
}


def held_out_rows(contents: Contents, engine: LlamaCpp, tokenize: Any, longest: int = 500) -> list[tuple[list[int], int]]:
    """Prompt and answer of questions as tokens, up to COMPARED answer tokens in all; with each where the answer begins.

    Of an answer there are at most `longest` tokens.
    """
    texts = {fact.id: fact.text for fact in contents.facts}
    rows, compared = [], 0
    for question in held_out(contents):
        if question.expected and question.expected[0] in texts and compared < COMPARED:
            prompt = engine.tokens((Message("user", question.query),))
            answer = tokenize(texts[question.expected[0]])[: min(longest, COMPARED - compared)]
            rows.append((prompt + answer, len(prompt) - 1))
            compared += len(answer)
    return rows


def agreement(model: Path, student: Student, rows: Sequence[tuple[list[int], int]], **cache: int) -> tuple[float, float]:
    """The share of tokens on which both say the same next one, and the largest difference of a logit there.

    `cache` are the types of llama.cpp's keys and values, 16 bits without.
    """
    llama = load_gguf(model, n_ctx=512, n_threads=1, n_threads_batch=1, logits_all=True, **cache)
    same, worst = [], 0.0
    for row, start in rows:
        llama.reset()
        llama.eval(row)
        theirs = np.asarray(llama.scores[start : len(row) - 1])
        with torch.no_grad():
            ours = student(torch.tensor([row]))[0, start:-1].numpy()
        same += (theirs.argmax(1) == ours.argmax(1)).tolist()
        worst = max(worst, float(np.abs(theirs - ours).max()))
    return sum(same) / len(same), worst


def decode_speeds(files: dict[str, Path], rounds: int) -> dict[str, float]:
    """Tokens a second of each file: the median of `rounds`, the files in turn."""
    llamas = {kind: load_gguf(path, n_ctx=512, n_threads=1, n_threads_batch=1) for kind, path in files.items()}
    found: dict[str, list[float]] = {kind: [] for kind in files}
    for round_ in range(rounds + 1):
        for kind, llama in llamas.items():
            llama.reset()
            llama.eval([0, 1])
            start = time.perf_counter()
            for token in range(DECODED):
                llama.eval([3 + token])
            if round_:  # the first one warms up
                found[kind].append(DECODED / (time.perf_counter() - start))
    return {kind: statistics.median(values) for kind, values in found.items()}


def bytes_without_embeddings(path: Path) -> int:
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors if tensor.name != "token_embd.weight")


def in_the_cascade(questions: Sequence[Question]) -> dict[str, tuple[Score, float]]:
    """What all layers together make of the questions, with the student and without it; with the seconds it took."""
    settings = load_settings()
    direct = Direct(settings)
    layers = list(direct.cascade.layers.values())
    cascades = {
        "with": direct.cascade,
        "without": cascade_over([layer for layer in layers if layer.name != "bitnet"], settings, direct.cosine),
    }
    found = {}
    for name, cascade in cascades.items():
        began = time.perf_counter()
        found[name] = (score(asyncio.run(_judged(cascade, questions))), time.perf_counter() - began)
    return found


async def _judged(cascade: Cascade, questions: Sequence[Question]) -> list[Judged]:
    finished = [await cascade.run(Query(question.query), lambda _: None) for question in questions]
    answers = [last.answer for last in finished if last.answer]
    return [judge(question, answer) for question, answer in zip(questions, answers, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--student", type=Path, default=SHIPPED, help="a folder of `kitbash distil`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    contents = Library(load_settings().cartridges_dir).load()
    model = options.student / MODEL
    student, vocabulary = read_student(model), read_vocabulary(model)
    layer = open_student(options.student, max_tokens=64)
    assert isinstance(layer.engine, LlamaCpp)

    def tokenize(text: str) -> list[int]:
        return vocabulary.tokens([text])[0]

    whole = held_out_rows(contents, layer.engine, tokenize)
    agreed, difference = agreement(model, student, whole, **EXACT)
    rounded, _ = agreement(model, student, whole)
    begun, _ = agreement(model, student, held_out_rows(contents, layer.engine, tokenize, BEGINNING), **EXACT)
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.gguf" for kind in KINDS}
        for kind, path in files.items():
            export(student, vocabulary, path, kind)
        speeds = decode_speeds(files, 3 if options.quick else 15)
        sizes = {kind: (path.stat().st_size, bytes_without_embeddings(path)) for kind, path in files.items()}
    scores, said = examine(layer, held_out(contents))
    took = [item.ms for item in said]
    print_table(
        "the same weights in llama.cpp, one thread",
        ("type", "bytes", "without embeddings", "tokens a second"),
        [(kind, f"{sizes[kind][0]:,}", f"{sizes[kind][1]:,}", round(speeds[kind])) for kind in KINDS],
    )
    print_table(
        "held-out questions, the student alone",
        ("", "right", "wrong", "declined"),
        [
            ("with an answer", scores.right, scores.wrong, scores.declined),
            ("without one", "", scores.answered, scores.refused),
        ],
    )
    cascade = in_the_cascade(held_out(contents)[:: 10 if options.quick else 1])
    print_table(
        "held-out questions, the cascade at its error budget",
        ("", "right", "wrong", "abstained", "rightly so", "seconds"),
        [
            (name, found.right, found.wrong, found.abstained, found.abstained_rightly, round(seconds, 1))
            for name, (found, seconds) in cascade.items()
        ],
    )
    answerable, others = scores.right + scores.wrong + scores.declined, scores.refused + scores.answered
    metrics = {
        "top1_agreement": round(agreed, 4),
        "top1_agreement_16_bit_cache": round(rounded, 4),
        "top1_agreement_of_beginnings": round(begun, 4),
        "largest_logit_difference": round(difference, 3),
        "decode_speed_vs_q8_0": round(speeds["TQ2_0"] / speeds["Q8_0"], 3),
        "decode_speed_vs_f16": round(speeds["TQ2_0"] / speeds["F16"], 3),
        "tokens_per_s": round(speeds["TQ2_0"]),
        "bytes": sizes["TQ2_0"][0],
        "bytes_vs_f16_without_embeddings": round(sizes["TQ2_0"][1] / sizes["F16"][1], 4),
        "right": round(scores.right / answerable, 4),
        "wrong": round(scores.wrong / answerable, 4),
        "declined": round(scores.declined / answerable, 4),
        "answered_without_answer": round(scores.answered / others, 4),
        "tokens_an_answer": round(sum(item.tokens for item in said) / len(said), 2),
        "answer_p50_ms": round(percentile(took, 0.5), 2),
        "answer_p95_ms": round(percentile(took, 0.95), 2),
        **{
            f"cascade_{name}_{what}": getattr(found, what)
            for name, (found, _) in cascade.items()
            for what in ("right", "wrong")
        },
    }
    finish("bitnet", metrics, TARGETS)


if __name__ == "__main__":
    main()
