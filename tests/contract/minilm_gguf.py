"""The published MiniLM as a GGUF in 16 bits: an embedding model that llama.cpp really runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from kitbash_ray.knowledge.minilm import read_weights, weights_folder

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
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}


def write_minilm_gguf(target: Path) -> Path:
    folder = weights_folder()
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
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, folder)
    for theirs, tensor in read_weights().items():
        if name := _name(theirs):
            matrix = name == "token_embd.weight" or (name.startswith("blk.") and name.endswith(".weight"))
            half = matrix and "norm" not in name  # what llama.cpp adds rather than multiplies must be F32
            writer.add_tensor(name, tensor.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _name(theirs: str) -> str | None:
    if not theirs.startswith("encoder.layer."):
        return EMBEDDING_TENSORS.get(theirs)
    _, _, block, rest = theirs.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{block}.{BLOCK_TENSORS[part]}.{kind}"


def _add_vocabulary(writer: Any, folder: Path) -> None:
    """The WordPiece vocabulary as llama.cpp wants it: word starts marked, `##` dropped."""
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
