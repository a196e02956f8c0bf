"""Train the verifier of layer 2: MiniLM reads question and fact together and says whether the fact answers.

What is learned are low-rank changes to MiniLM and a linear head on the mean of the token vectors
(cross_encoder.py). Runs on one processor core. Needs the extra `train` (PyTorch). Not here: the pairs that it
learns from (verifier_pairs.py).

    python -m benchmarks.fit_verifier [--minutes 54] [--resume] [--write]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import finish
from benchmarks.cross_encoder import CrossEncoder, padded
from benchmarks.verifier_pairs import Pair, all_pairs, noisy, taught_keys
from kitbash_ray.config import load_settings
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.minilm import weights_folder
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.knowledge.verifier import MAX_TOKENS, SHIPPED, side_by_side

#: With a step of 1e-3 it learns nothing any more since a quarter of the pairs are written to mislead.
BATCH, STEP = 32, 4e-4
#: How often the nearest way to ask is left out: imported facts have none.
WITHOUT_ASK = 0.3
#: Of the plain neighbours, which are the most and the easiest, this share is read in a round.
NEIGHBOURS_READ = 0.5


class Reader:
    """Pairs to tensors of word pieces."""

    def __init__(self, folder: Path, rnd: random.Random) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._rnd = rnd

    def text(self, pair: Pair, noise: bool) -> str:
        rnd = self._rnd
        question = noisy(pair.question, rnd) if noise else pair.question
        without = noise and rnd.random() < WITHOUT_ASK
        if without or not pair.asks:
            return side_by_side(question, pair.statement, "")
        second = noise and len(pair.asks) > 1 and rnd.random() < 0.15
        return side_by_side(question, pair.statement, pair.asks[int(second)])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids[:MAX_TOKENS] for found in self._tokenizer.encode_batch(list(texts))]


def batches(pairs: Sequence[Pair], reader: Reader, rnd: random.Random) -> Iterator[tuple[Any, Any, Any, Any]]:
    """One round over the pairs, texts of one length together, in random order."""
    read = [pair for pair in pairs if pair.kind != "neighbour" or rnd.random() < NEIGHBOURS_READ]
    rnd.shuffle(read)
    for start in range(0, len(read), BATCH * 40):
        chunk = read[start : start + BATCH * 40]
        rows = reader.ids([reader.text(pair, noise=True) for pair in chunk])
        order = sorted(range(len(chunk)), key=lambda at: len(rows[at]))
        groups = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        rnd.shuffle(groups)
        for group in groups:
            right = torch.tensor([float(chunk[at].answers) for at in group])
            weight = torch.tensor([chunk[at].weight for at in group])
            yield *padded([rows[at] for at in group]), right, weight


def logits(model: CrossEncoder, rows: Sequence[list[int]]) -> Any:
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    found = np.zeros(len(rows), np.float32)
    for start in range(0, len(order), BATCH):
        group = order[start : start + BATCH]
        with torch.no_grad():
            found[group] = model(*padded([rows[at] for at in group])).numpy()
    return found


def told_apart(model: CrossEncoder, pairs: Sequence[Pair], reader: Reader) -> dict[str, float]:
    """The area under the curve of each kind of wrong pair against the right ones of its source."""
    from sklearn.metrics import roc_auc_score

    scores = logits(model, reader.ids([reader.text(pair, noise=False) for pair in pairs]))
    kinds = np.array([pair.kind for pair in pairs])
    against = {"neighbour": "own", "swap": "own", "trap": "control", "obscure wrong": "obscure right"}
    areas = {}
    for wrong, right in against.items():
        chosen = (kinds == wrong) | (kinds == right)
        areas[wrong] = round(float(roc_auc_score(kinds[chosen] == right, scores[chosen])), 4)
    return areas


def train(model: CrossEncoder, pairs: Sequence[Pair], reader: Reader, minutes: float, rnd: random.Random) -> int:
    """Learn until the time is up, the step falling to nothing; the number of pairs read."""
    changes = [*model.down.parameters(), *model.up.parameters()]
    optimizer = torch.optim.AdamW([*changes, *model.head.parameters()], lr=STEP, weight_decay=0.01)
    start, seen, running, rounds = time.monotonic(), 0, 0.7, 0
    while True:
        for ids, mask, right, weight in batches(pairs, reader, rnd):
            done = (time.monotonic() - start) / (60 * minutes)
            if done >= 1:
                return seen
            for group in optimizer.param_groups:
                group["lr"] = STEP * min(1.0, done / 0.04 + 0.02) * max(0.01, 1 - done)
            loss = (F.binary_cross_entropy_with_logits(model(ids, mask), right, reduction="none") * weight).sum() / weight.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(changes, 1.0)
            optimizer.step()
            seen += len(ids)
            running += 0.01 * (loss.item() - running)
            if seen // BATCH % 50 == 0:
                print(f"{100 * done:.0f} %, round {rounds}, {seen} pairs, loss {running:.3f}", flush=True)
        rounds += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=54.0)
    parser.add_argument("--resume", action="store_true", help="go on from the verifier.npz that is there")
    parser.add_argument("--write", action="store_true", help="replace verifier.npz in kitbash_ray/knowledge/")
    options = parser.parse_args()
    torch.set_num_threads(1)  # on shared cores two threads wait for each other
    torch.manual_seed(0)
    # What was read before is read again in another order and with other noise.
    rnd, settings, folder = random.Random(int(options.resume)), load_settings(), weights_folder()
    pairs = all_pairs(VectorStore(open_embedder(settings), settings.cache_dir))
    reader, model = Reader(folder, rnd), CrossEncoder(folder)
    if options.resume:
        model.load(SHIPPED)
    held_out = [pair for pair in pairs if pair.held_out]
    seen = train(model, [pair for pair in pairs if not pair.held_out], reader, options.minutes, rnd)
    areas = told_apart(model, held_out, reader)
    if options.write:
        np.savez_compressed(SHIPPED, **model.arrays(), seen=np.array(sorted(taught_keys()), np.int64))
    finish("fit_verifier", {"pairs_read": seen, **{name.replace(" ", "_"): area for name, area in areas.items()}}, {})


if __name__ == "__main__":
    main()
