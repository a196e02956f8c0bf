"""What a model made of MiniLM learned: low-rank changes to the matrices of its blocks, in a file of some megabytes.

The changes are merged into MiniLM's weights once, and the result runs as MiniLM does. Not here: what the
models are for (verifier.py, extractor.py), how they learn (benchmarks/cross_encoder.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitbash_ray.knowledge.minilm import ensure_encoder, read_weights

#: The matrices of a block that have changes.
MATRICES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
#: What stands between the texts that such a model reads as one.
BETWEEN = " || "
#: The array of what a model learned from: a number for each question or article.
SEEN = "seen"

Changes = Mapping[str, npt.NDArray[np.float32]]


def ensure_changed(cache_dir: Path, changes: Path) -> Path:
    """The path of MiniLM's graph with `changes`, made now if it is not there yet. Its name has their hash in it."""
    digest = hashlib.blake2b(changes.read_bytes(), digest_size=6).hexdigest()
    return ensure_encoder(cache_dir, f"{changes.stem}-{digest}", lambda: with_changes(read_weights(), read_changes(changes)))


def read_changes(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of a file like `verifier.npz`: of the changes, and of what the model adds to MiniLM."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.float32) for name in stored.files if name != SEEN}


def taught(path: Path) -> frozenset[int]:
    """What the model learned from, as numbers that `path` has for each question or article."""
    with np.load(path, allow_pickle=False) as stored:
        return frozenset(stored[SEEN].tolist())


def with_changes(weights: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """MiniLM's weights with the changes added: each is the product of a tall and a wide matrix."""
    merged = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    for name in changes:
        if name.endswith(".up"):
            matrix = f"encoder.layer.{name.removesuffix('.up')}.weight"
            merged[matrix] = merged[matrix].astype(np.float32) + changes[name] @ changes[name.removesuffix("up") + "down"]
    return merged
