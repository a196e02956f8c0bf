"""Train the extractor of quotations: MiniLM marks where in a passage the answer begins and ends, and whether it has one.

It learns from SQuAD 2.0: each question beside its own paragraph, and every second one also beside another of the
article, which does not answer it. It begins with what the verifier has learned (cross_encoder.py). Two more learn
from every second article only: they are for the others, when squad2.py measures what this is worth. Each takes one
processor core for a quarter to half an hour, and there are as many at once as cores. Needs the extra `train`
(PyTorch), and the data (squad.py).

    python -m benchmarks.fit_extractor [--write]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.cross_encoder import WIDTH, CrossEncoder, padded
from benchmarks.squad import DATA, HALVES, each_article, mark, read_articles
from kitbash_ray.knowledge import verifier
from kitbash_ray.knowledge.extractor import MAX_TOKENS, SHIPPED
from kitbash_ray.knowledge.low_rank import BETWEEN, SEEN
from kitbash_ray.knowledge.minilm import weights_folder

#: Rounds over the questions, and texts of one step; the first tried.
ROUNDS, BATCH = 4, 16
#: Lengths of the steps: of the changes and the head, which begin with the verifier's, and of what is new.
STEP, STEP_OF_NEW = 4e-4, 2e-3
#: The share of the questions that are also put beside another paragraph.
BESIDE_ANOTHER = 0.5
#: What no token of the passage is gets this logit.
NEVER = -1e4


class Spans(CrossEncoder):
    """The model with two more logits for each token: that the answer begins with it, and that it ends with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.span = torch.nn.Linear(WIDTH, 2)
        torch.nn.init.normal_(self.span.weight, std=0.02)

    def both(self, ids: Any, mask: Any) -> tuple[Any, Any]:
        """The logit that the passage answers, and those of each token."""
        vectors = self.token_vectors(ids, mask)
        return self.logit(vectors, mask), self.span(vectors)

    def arrays(self) -> dict[str, Any]:
        span = {"span.weight": self.span.weight, "span.bias": self.span.bias}
        return super().arrays() | {name: tensor.detach().numpy().astype(np.float16) for name, tensor in span.items()}


class Beside(NamedTuple):
    """A question beside a passage, and where answers to it begin and end there."""

    question: str
    passage: str
    answers: tuple[tuple[int, int], ...]


class Text(NamedTuple):
    """A pair as tokens: their ids, whether each is of the passage, and the first and last of an answer."""

    ids: list[int]
    of_passage: list[bool]
    span: tuple[int, int] | None
    answers: bool


class Reader:
    """Pairs to tokens; of several answers one by chance."""

    def __init__(self, folder: Path, rnd: random.Random) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._rnd = rnd

    def text(self, pair: Beside) -> Text:
        before = len(pair.question) + len(BETWEEN)
        read = self._tokenizer.encode(pair.question + BETWEEN + pair.passage)
        places = [(start - before, end - before) for start, end in read.offsets]
        of_passage = [0 <= start < end for start, end in places]
        span = None
        if pair.answers:
            first, last = self._rnd.choice(pair.answers)
            within = [at for at, (start, end) in enumerate(places) if of_passage[at] and end > first and start < last]
            if within and places[within[-1]][1] >= last:  # or the end was cut off
                span = within[0], within[-1]
        return Text(read.ids, of_passage, span, bool(pair.answers))


def pairs(articles: Sequence[dict[str, Any]], rnd: random.Random) -> Iterator[Beside]:
    """One round of what is learned from."""
    for article in articles:
        contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                found = () if entry["is_impossible"] else entry["answers"]
                spans = tuple((each["answer_start"], each["answer_start"] + len(each["text"])) for each in found)
                yield Beside(entry["question"], paragraph["context"], spans)
                other = rnd.choice(contexts)
                if rnd.random() < BESIDE_ANOTHER and other != paragraph["context"]:
                    yield Beside(entry["question"], other, ())


def batches(articles: Sequence[dict[str, Any]], reader: Reader, rnd: random.Random) -> Iterator[list[Text]]:
    """One round, texts of one length together, in random order."""
    every = list(pairs(articles, rnd))
    rnd.shuffle(every)
    for start in range(0, len(every), BATCH * 20):
        texts = sorted((reader.text(pair) for pair in every[start : start + BATCH * 20]), key=lambda text: len(text.ids))
        groups = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
        rnd.shuffle(groups)
        yield from groups


def loss_of(model: Spans, group: Sequence[Text]) -> Any:
    """Cross entropy of whether there is an answer, and of its first and its last token."""
    ids, mask = padded([text.ids for text in group])
    answered, tokens = model.both(ids, mask)
    loss = F.binary_cross_entropy_with_logits(answered, torch.tensor([float(text.answers) for text in group]))
    known = [at for at, text in enumerate(group) if text.span]
    if not known:
        return loss
    of_passage = torch.zeros(len(group), ids.shape[1], dtype=torch.bool)
    for at, text in enumerate(group):
        of_passage[at, : len(text.ids)] = torch.tensor(text.of_passage)
    logits = tokens.masked_fill(~of_passage[:, :, None], NEVER)[known]
    spans = torch.tensor([group[at].span for at in known])
    share = len(known) / len(group)
    return loss + share * sum(F.cross_entropy(logits[:, :, side], spans[:, side]) for side in (0, 1))


def train(articles: Sequence[dict[str, Any]], name: str) -> Spans:
    """Learn from all questions of `articles`, telling how far `name` is."""
    torch.set_num_threads(1)  # on shared cores two threads wait for each other
    torch.manual_seed(0)
    rnd, folder = random.Random(0), weights_folder()
    model, reader = Spans(folder), Reader(folder, rnd)
    model.load(verifier.SHIPPED)
    changes = [*model.down.parameters(), *model.up.parameters()]
    groups = [
        {"params": [*changes, *model.head.parameters()], "lr": STEP},
        {"params": model.span.parameters(), "lr": STEP_OF_NEW},
    ]
    questions = sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])
    steps, began, step = int(ROUNDS * questions * (1 + BESIDE_ANOTHER) / BATCH), time.monotonic(), 0
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step / steps))
    while True:
        for group in batches(articles, reader, rnd):
            if step == steps:
                return model
            loss = loss_of(model, group)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(changes, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 25 == 0:
                print(f"{name}: {step} of {steps} steps, {time.monotonic() - began:.0f} s, loss {loss.item():.3f}", flush=True)


def _share(done: float) -> float:
    """The share of a step's length after this share of the steps: it rises at first and then falls to nothing."""
    return min(1.0, done / 0.06 + 0.02) * max(0.01, 1 - done)


def save(path: Path, model: Spans, articles: Sequence[dict[str, Any]]) -> None:
    """What it learned, with the marks of what it learned from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = np.array([mark(article["title"]) for article in articles], np.int64)
    arrays: dict[str, Any] = {**model.arrays(), SEEN: seen}
    np.savez_compressed(path, **arrays)


def make(path: Path, articles: Sequence[dict[str, Any]], write: bool) -> None:
    """Train what belongs into `path`."""
    model = train(articles, path.stem)
    if write:
        save(path, model, articles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace extractor.npz and the two halves")
    options = parser.parse_args()
    articles = read_articles()
    if not articles:
        print(f"Nothing to learn from: there is no squad2*.json in {DATA}.")
        return
    fold_of = each_article((article["title"] for article in articles), len(HALVES))
    parts = [(SHIPPED, articles)] + [
        (path, [article for article in articles if fold_of[article["title"]] != fold]) for fold, path in enumerate(HALVES)
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        list(processes.map(make, *zip(*parts, strict=True), [options.write] * len(parts)))


if __name__ == "__main__":
    main()
