"""Tiny real GGUF files for tests and benchmarks: a random model, and a LoRA adapter of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: The shape of the tiny model. It has seen no text: what it writes is random, but repeatable.
TINY_EMBED, TINY_HEADS, TINY_BLOCKS, TINY_FEED_FORWARD, TINY_CONTEXT = 64, 4, 2, 128, 4096
TINY_WORDS = """the cell water light energy sun leaf root stone river cloud bird fish tree seed salt iron wave sound
    heat cold north south moon star wind rain snow sand fire glass paper ink wheel clock bell door roof wall""".split()


def write_tiny_gguf(path: Path, *, seed: int = 0, weights: str = "F32", blocks: int = TINY_BLOCKS) -> Path:
    """Write a random model of architecture `llama` to `path`: under a megabyte, real llama.cpp.

    With more `blocks` it is larger and slower. `weights` is the ggml type of its matrices, F32 or one that takes rows of 64 (Q8_0, Q4_0). Its tokens are the 256 bytes and `TINY_WORDS`; it writes only the words and ends by length.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(TINY_CONTEXT)
    writer.add_embedding_length(TINY_EMBED)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(TINY_FEED_FORWARD)
    writer.add_head_count(TINY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(TINY_EMBED // TINY_HEADS)
    size = _add_tiny_vocabulary(writer)
    kind = gguf.GGMLQuantizationType[weights]
    for name, tensor in _tiny_tensors(size, blocks, np.random.default_rng(seed)):
        if tensor.ndim == 2 and weights != "F32":
            writer.add_tensor(name, gguf.quants.quantize(tensor.astype(np.float32), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tiny_vocabulary(writer: Any) -> int:
    """SentencePiece tokens: three special ones, every byte, and whole words. Returns how many."""
    import gguf

    kinds = gguf.TokenType
    entries = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    entries += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    entries += [("\u2581" + word, kinds.NORMAL) for word in TINY_WORDS]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in entries])
    writer.add_token_scores([0.0] * len(entries))
    writer.add_token_types([kind for _, kind in entries])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    return len(entries)


def _tiny_tensors(size: int, blocks: int, random: np.random.Generator) -> list[tuple[str, npt.NDArray[np.float64]]]:
    wide, deep = TINY_EMBED, TINY_FEED_FORWARD
    output = random.standard_normal((size, wide))
    output[: size - len(TINY_WORDS)] = 0.0  # only words have a chance to be the next token
    tensors = [
        ("token_embd.weight", random.standard_normal((size, wide))),
        ("output_norm.weight", np.ones(wide)),
        ("output.weight", output),
    ]
    shapes = {
        "attn_q": (wide, wide), "attn_k": (wide, wide), "attn_v": (wide, wide), "attn_output": (wide, wide),
        "ffn_gate": (deep, wide), "ffn_up": (deep, wide), "ffn_down": (wide, deep),
    }  # fmt: skip
    for block in range(blocks):
        tensors += [(f"blk.{block}.{name}.weight", np.ones(wide)) for name in ("attn_norm", "ffn_norm")]
        tensors += [
            (f"blk.{block}.{name}.weight", random.standard_normal(shape) / math.sqrt(shape[1]))
            for name, shape in shapes.items()
        ]
    return tensors


def write_tiny_adapter(path: Path, *, seed: int = 0, rank: int = 4) -> Path:
    """Write a random LoRA adapter of the tiny model to `path`; with it the model says something else."""
    import gguf

    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4.0 * rank)
    for block in range(TINY_BLOCKS):
        for name in ("attn_q", "attn_output"):
            for part, shape in (("lora_a", (rank, TINY_EMBED)), ("lora_b", (TINY_EMBED, rank))):
                writer.add_tensor(f"blk.{block}.{name}.weight.{part}", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
