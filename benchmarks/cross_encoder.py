"""MiniLM with low-rank changes that are learned: question and text are read together, as one.

The frozen weights are computed with in 16 bits, in PyTorch. Not here: what is learned (fit_verifier.py,
fit_extractor.py), how the result runs (kitbash_ray/knowledge/low_rank.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kitbash_ray.knowledge.low_rank import MATRICES

BLOCKS, WIDTH, HEADS = 6, 384, 12
RANK = 32
HALF = torch.bfloat16


class CrossEncoder(torch.nn.Module):
    """MiniLM with low-rank changes, mean pooling and one logit. Frozen weights are kept in 16 bits."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        super().__init__()
        weights = load_file(folder / "model.safetensors")
        self.frozen = {name.removeprefix("bert."): its.to(HALF) for name, its in weights.items() if its.is_floating_point()}
        self.down, self.up = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        for name, matrix in self._matrices():
            outputs, inputs = matrix.shape
            self.down[name] = torch.nn.Parameter(torch.randn(RANK, inputs) / inputs**0.5)
            self.up[name] = torch.nn.Parameter(torch.zeros(outputs, RANK))
        self.head = torch.nn.Linear(WIDTH, 1)
        torch.nn.init.normal_(self.head.weight, std=0.02)

    def _matrices(self) -> Iterator[tuple[str, Any]]:
        for block in range(BLOCKS):
            for part in MATRICES:
                yield f"{block}/{part.replace('.', '/')}", self.frozen[f"encoder.layer.{block}.{part}.weight"]

    def _linear(self, block: int, part: str, x: Any) -> Any:
        prefix, name = f"encoder.layer.{block}.{part}", f"{block}/{part.replace('.', '/')}"
        plain = F.linear(x, self.frozen[prefix + ".weight"], self.frozen[prefix + ".bias"])
        change = F.linear(x, self.down[name].to(HALF)).flatten(0, 1)
        return torch.addmm(plain.flatten(0, 1), change, self.up[name].to(HALF).t()).view(plain.shape)

    def _norm(self, name: str, x: Any) -> Any:
        return F.layer_norm(x, (WIDTH,), self.frozen[name + ".weight"], self.frozen[name + ".bias"], 1e-12)

    def forward(self, ids: Any, mask: Any) -> Any:
        """One logit for each text."""
        return self.logit(self.token_vectors(ids, mask), mask)

    def logit(self, vectors: Any, mask: Any) -> Any:
        """That of the mean of each text's token vectors."""
        kept = mask[:, :, None]
        return self.head((vectors * kept).sum(1) / kept.sum(1))[:, 0]

    def token_vectors(self, ids: Any, mask: Any) -> Any:
        """Shape (texts, tokens, WIDTH), in 32 bits."""
        texts, length = ids.shape
        frozen, e = self.frozen, "embeddings."
        x = frozen[e + "word_embeddings.weight"][ids] + frozen[e + "position_embeddings.weight"][:length]
        x = self._norm(e + "LayerNorm", x + frozen[e + "token_type_embeddings.weight"][0])
        hidden = ((1 - mask) * -30000.0)[:, None, None, :].to(HALF)

        def split(y: Any) -> Any:
            return y.view(texts, length, HEADS, WIDTH // HEADS).transpose(1, 2)

        for block in range(BLOCKS):
            query = split(self._linear(block, "attention.self.query", x)) * (WIDTH / HEADS) ** -0.5
            looks = query @ split(self._linear(block, "attention.self.key", x)).transpose(-1, -2) + hidden
            seen = looks.softmax(-1) @ split(self._linear(block, "attention.self.value", x))
            seen = self._linear(block, "attention.output.dense", seen.transpose(1, 2).reshape(x.shape))
            x = self._norm(f"encoder.layer.{block}.attention.output.LayerNorm", x + seen)
            inner = F.gelu(self._linear(block, "intermediate.dense", x))
            x = self._norm(f"encoder.layer.{block}.output.LayerNorm", x + self._linear(block, "output.dense", inner))
        return x.float()

    def arrays(self) -> dict[str, Any]:
        """The changes and the head in 16 bits, as kitbash_ray/knowledge/low_rank.py reads them."""
        arrays = {"head.weight": self.head.weight[0], "head.bias": self.head.bias}
        for name in self.down:
            plain = name.replace("/", ".")
            arrays[f"{plain}.down"], arrays[f"{plain}.up"] = self.down[name], self.up[name]
        return {name: tensor.detach().numpy().astype(np.float16) for name, tensor in arrays.items()}

    def load(self, path: Path) -> None:
        """Take over what `arrays` gave and a file has."""
        with np.load(path) as stored, torch.no_grad():
            self.head.weight[0], self.head.bias[:] = torch.tensor(stored["head.weight"]), torch.tensor(stored["head.bias"])
            for name in self.down:
                plain = name.replace("/", ".")
                self.down[name][:] = torch.tensor(stored[f"{plain}.down"])
                self.up[name][:] = torch.tensor(stored[f"{plain}.up"])


def padded(rows: Sequence[list[int]]) -> tuple[Any, Any]:
    """Ids and mask; lengths are multiples of 8, which the processor's matrix unit likes."""
    length = -(-max(map(len, rows)) // 8) * 8
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = torch.tensor(row), 1.0
    return ids, mask
