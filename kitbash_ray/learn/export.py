"""A student as GGUF, architecture `bitnet`, that stock llama.cpp runs; and a student read back from one.

The ternary matrices are TQ2_0 (2 bits and a scale), or F16 or Q8_0 for comparison; embeddings are Q8_0, beside
F16 matrices F16, and norms F32. The prompt's form is the file's chat template.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kitbash_ray.learn.recipe import Shape
from kitbash_ray.learn.student import HEAD, Student, ternary
from kitbash_ray.learn.tokenizer import ANSWER, END, QUESTION, SPECIAL, Vocabulary

NAME = "kitbash-student"
EMBEDDING = "token_embd.weight"
#: The last message of the user; llama.cpp's reader of templates has the same string methods as Python.
TEMPLATE = (
    "{% for message in messages if message['role'] == 'user' %}{% if loop.last %}"
    + QUESTION
    + "{{ message['content'].lower().strip().rstrip('.?!').strip() }}"
    + ANSWER
    + "{% endif %}{% endfor %}"
)


def export(student: Student, vocabulary: Vocabulary, path: Path, kind: str = "TQ2_0") -> None:
    """Write `path`; `kind` is the type of the ternary matrices: TQ2_0, Q8_0 or F16."""
    import gguf

    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "bitnet")
    _add_shape(writer, student.shape, kind)
    _add_vocabulary(writer, vocabulary, student.shape.vocabulary)
    for name, tensor in _tensors(student).items():
        size = gguf.GGMLQuantizationType[kind_of(name, kind)]
        writer.add_tensor(name, gguf.quants.quantize(tensor, size), raw_dtype=size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def kind_of(name: str, kind: str) -> str:
    """The type of the tensor `name` in a file whose ternary matrices are `kind`."""
    if "norm" in name:
        return "F32"
    return "Q8_0" if name == EMBEDDING and kind != "F16" else kind


def read_student(path: Path) -> Student:
    """The student in a file, with the weights that llama.cpp computes with. Raises ModelError for another model."""
    import gguf

    from kitbash_ray.errors import ModelError

    try:
        reader = gguf.GGUFReader(path)
        number = {key: reader.get_field(f"bitnet.{key}").contents() for key in SHAPE_KEYS}  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{str(path)!r} is no student of `kitbash distil`.") from error
    shape = Shape(
        width=number["embedding_length"], inner=number["feed_forward_length"], blocks=number["block_count"],
        heads=number["attention.head_count"], vocabulary=number["vocab_size"], context=number["context_length"],
        rope_base=float(number["rope.freq_base"]), epsilon=round(number["attention.layer_norm_rms_epsilon"], 9),
    )  # fmt: skip
    student = Student(shape)
    student.load_state_dict(
        {
            tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
            for tensor in reader.tensors
        }
    )
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    student.fix(reads_in_bytes=types[EMBEDDING] == "Q8_0")
    return student


SHAPE_KEYS = (
    "embedding_length", "feed_forward_length", "block_count", "attention.head_count", "vocab_size", "context_length",
    "rope.freq_base", "attention.layer_norm_rms_epsilon",
)  # fmt: skip


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a file, as `tokenizers` reads it."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = gguf.GGUFReader(path)
    entries, merges = (reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "merges"))  # type: ignore[union-attr]
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer: Any = Tokenizer(models.BPE({entry: at for at, entry in enumerate(entries)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return Vocabulary(tokenizer)


def _add_shape(writer: Any, shape: Shape, kind: str) -> None:
    import gguf

    writer.add_name(NAME)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, size: int) -> None:
    import gguf

    entries = vocabulary.entries()
    kinds = [gguf.TokenType.CONTROL if entry in SPECIAL else gguf.TokenType.NORMAL for entry in entries]
    unused = [f"<|unused{number}|>" for number in range(len(entries), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*entries, *unused])
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(unused)])
    writer.add_token_merges(vocabulary.merges())
    end = entries.index(END)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _tensors(student: Student) -> dict[str, Any]:
    """The tensors by their names in the file, float32; the matrices are ternary."""
    matrices = {id(matrix) for matrix in student.matrices()}
    fixed = student.fixed
    with torch.no_grad():
        return {
            name: (ternary(tensor) if id(tensor) in matrices and not fixed else tensor).float().cpu().numpy()
            for name, tensor in student.named_parameters()
        }
