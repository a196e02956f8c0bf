"""The loop that teaches a student: batches, steps, and checkpoints that it goes on from.

A step's batch follows from its number and the seed alone, so a run that was interrupted ends with the
same weights as one that was not. Uses CUDA where there is some. Not here: what is taught (corpus.py).
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from random import Random

import llama_cpp
import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kitbash_ray.learn.corpus import DECLINE, Corpus
from kitbash_ray.learn.recipe import Recipe
from kitbash_ray.learn.student import VECTOR, Student
from kitbash_ray.learn.tokenizer import Vocabulary

#: Batches whose questions are sorted by length together, so that texts of a batch are about equally long.
SORTED_TOGETHER = 16
#: Lengths are multiples of this.
ROUND = 4
CHECKPOINT_EVERY_S = 60.0
#: What llama.cpp says of itself on a processor that multiplies BF16.
FAST_BF16 = "AVX512_BF16 = 1"
#: The mean loss that is reported forgets this much a step.
FORGET = 0.02
IGNORED = -100
#: Vectors with a higher cosine mean the same; cosines are multiplied by SHARPNESS before they compete.
SAME_MEANING, SHARPNESS = 0.999, 20.0

Vectors = npt.NDArray[np.float32]
#: Steps done, steps in all, mean loss of late.
Report = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens` (texts, tokens); `targets` alike, IGNORED where nothing is learned; `ends` where each prompt ends.

    `meanings` are rows of the vectors, -1 where there is none.
    """

    tokens: Tensor
    targets: Tensor
    ends: Tensor
    meanings: Tensor


class Reader:
    """The batches of a corpus."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, recipe: Recipe) -> None:
        self._corpus, self._vocabulary, self._recipe = corpus, vocabulary, recipe
        self._answers = vocabulary.tokens([fact.text for fact in corpus.facts])
        self._decline = [*vocabulary.tokens([DECLINE])[0], vocabulary.end]
        self._enough = [max(recipe.answer_tokens, size + 1) for size in telling(self._answers)]
        self._at = -1
        self._batches: list[Batch] = []

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same however one came to it."""
        at, place = divmod(step, SORTED_TOGETHER)
        if at != self._at:
            self._batches, self._at = self._read(at), at
        return self._batches[place]

    def _read(self, at: int) -> list[Batch]:
        recipe, asks = self._recipe, len(self._corpus.asks)
        rnd = Random(f"{recipe.seed} {at}")
        size = recipe.batch * SORTED_TOGETHER
        numbers = []
        for place in range(at * size, (at + 1) * size):
            numbers.append(self._order(place // asks)[place % asks])
        examples = [self._corpus.example(number, recipe, rnd) for number in numbers]
        prompts = self._vocabulary.prompts([example.question for example in examples])
        rows = []
        for example, prompt in zip(examples, prompts, strict=True):
            prompt = [*prompt[: recipe.shape.context - recipe.longest - 2], self._vocabulary.answer][: len(prompt)]
            answer = self._decline if example.fact is None else self._answer(example.fact, rnd)
            rows.append((prompt, answer, -1 if example.meaning is None else example.meaning))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches = [_padded(rows[start : start + recipe.batch]) for start in range(0, size, recipe.batch)]
        rnd.shuffle(batches)
        return batches

    def _order(self, round_: int) -> list[int]:
        """The asks in the order of one round over them."""
        if getattr(self, "_round", None) != round_:
            self._numbers = list(range(len(self._corpus.asks)))
            Random(f"{self._recipe.seed} round {round_}").shuffle(self._numbers)
            self._round = round_
        return self._numbers

    def _answer(self, fact: int, rnd: Random) -> list[int]:
        recipe = self._recipe
        whole = [*self._answers[fact], self._vocabulary.end]
        return whole[: recipe.longest if rnd.random() < recipe.whole else self._enough[fact]]


def telling(rows: Sequence[list[int]]) -> list[int]:
    """How many tokens of each row tell it from all others."""
    order = sorted(range(len(rows)), key=lambda at: rows[at])
    shared = [0] * len(rows)
    for one, other in pairwise(order):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(rows[one], rows[other], strict=False)))
        shared[one], shared[other] = max(shared[one], same), max(shared[other], same)
    return [size + 1 for size in shared]


def _padded(rows: Sequence[tuple[list[int], list[int], int]]) -> Batch:
    length = max(len(prompt) + len(answer) for prompt, answer, _ in rows) - 1
    length = -(-length // ROUND) * ROUND
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), IGNORED)
    for at, (prompt, answer, _) in enumerate(rows):
        text = prompt + answer
        tokens[at, : len(text) - 1] = torch.tensor(text[:-1])
        targets[at, len(prompt) - 1 : len(text) - 1] = torch.tensor(answer)
    ends = torch.tensor([len(prompt) - 1 for prompt, _, _ in rows])
    return Batch(tokens, targets, ends, torch.tensor([meaning for _, _, meaning in rows]))


def meaning_loss(meant: Tensor, wanted: Tensor, recipe: Recipe) -> Tensor:
    """How far `meant` (texts, VECTOR) is from the unit vectors `wanted`, and how hard to tell it from the others' there."""
    meant = F.normalize(meant, dim=-1)
    away = 1 - (meant * wanted).sum(-1).mean()
    own = torch.arange(len(wanted), device=wanted.device)
    twins = (wanted @ wanted.t() > SAME_MEANING) & (own[:, None] != own)
    among = (SHARPNESS * meant @ wanted.t()).masked_fill(twins, -torch.inf)
    return recipe.vectors * away + recipe.contrast * F.cross_entropy(among, own)


class Training:
    """A student, its optimizer, and how far they are."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, recipe: Recipe, vectors: Vectors) -> None:
        """`vectors` (meanings, 384) are the unit sentence vectors of `corpus.meanings`."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.vocabulary, self.data = recipe, vocabulary, corpus.hash
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student = Student(recipe.shape).to(self.device)
        self.compass = nn.Linear(recipe.shape.width, VECTOR).to(self.device)
        self.step, self.loss = 0, 0.0
        self._vectors = torch.from_numpy(np.asarray(vectors, np.float32)).to(self.device)
        self._reader = Reader(corpus, vocabulary, recipe)
        parameters = [*self.student.parameters(), *self.compass.parameters()]
        matrices = {id(matrix) for matrix in self.student.matrices()}
        groups = [
            {"params": [item for item in parameters if id(item) in matrices], "weight_decay": recipe.weight_decay},
            {"params": [item for item in parameters if id(item) not in matrices], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
        self._fast_half = self.device.type == "cuda" or FAST_BF16 in llama_cpp.llama_print_system_info().decode()

    def advance(self) -> None:
        """One step."""
        batch, recipe, done = self._reader.batch(self.step), self.recipe, self.step / self.recipe.steps
        for number, group in enumerate(self._optimizer.param_groups):
            group["lr"] = (
                recipe.learning_rate
                * min(1.0, (self.step + 1) / recipe.warmup)
                * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
            )
            group["weight_decay"] = recipe.weight_decay if number == 0 and done < 0.5 else 0.0
        self._optimizer.zero_grad()
        loss, total = self._losses(batch)
        total.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self._optimizer.step()
        self.step += 1
        seen = float(loss.detach())
        self.loss = seen if self.step == 1 else self.loss + FORGET * (seen - self.loss)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is learned of the answers' tokens, and that with what is learned of the meanings."""
        tokens, targets = batch.tokens.to(self.device), batch.targets.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._fast_half):
            states = self.student.states(tokens)
            learned = targets != IGNORED
            logits = self.student.logits(states[learned])
            ends = states[torch.arange(len(tokens), device=self.device), batch.ends.to(self.device)]
            meant = self.compass(ends)
        loss = F.cross_entropy(logits.float(), targets[learned])
        known = batch.meanings >= 0
        if not known.any():
            return loss, loss
        wanted = self._vectors[batch.meanings[known].to(self.device)]
        return loss, loss + meaning_loss(meant[known.to(self.device)].float(), wanted, self.recipe)

    def save(self, path: Path) -> None:
        """Write a checkpoint; a crash leaves the old one."""
        partial = path.with_suffix(f".{os.getpid()}.partial")
        torch.save(
            {
                "data": self.data,
                "recipe": msgspec.json.encode(self.recipe),
                "vocabulary": self.vocabulary.to_json(),
                "step": self.step,
                "loss": self.loss,
                "student": self.student.state_dict(),
                "compass": self.compass.state_dict(),
                "optimizer": self._optimizer.state_dict(),
            },
            partial,
        )
        partial.replace(path)

    def resume(self, path: Path) -> str | None:
        """Go on from a checkpoint. Says why not when it belongs to another run, cannot be read or is not there."""
        if not path.is_file():
            return "there is no checkpoint"
        try:
            found = torch.load(path, map_location=self.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            return "the checkpoint cannot be read"
        for key, own, what in (
            ("data", self.data, "the cartridges have"),
            ("recipe", msgspec.json.encode(self.recipe), "the recipe has"),
            ("vocabulary", self.vocabulary.to_json(), "the vocabulary has"),
        ):
            if found.get(key) != own:
                return f"{what} changed since the checkpoint"
        self.student.load_state_dict(found["student"])
        self.compass.load_state_dict(found["compass"])
        self._optimizer.load_state_dict(found["optimizer"])
        self.step, self.loss = found["step"], found["loss"]
        return None

    def run(self, checkpoint: Path, report: Report | None = None) -> Student:
        """All steps that are left, with a checkpoint every minute and when it is interrupted."""
        saved = time.monotonic()
        try:
            while self.step < self.recipe.steps:
                self.advance()
                if report:
                    report(self.step, self.recipe.steps, self.loss)
                if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                    self.save(checkpoint)
                    saved = time.monotonic()
        finally:
            self.save(checkpoint)
        return self.student
