"""A BERT encoder as an ONNX graph that multiplies in 8 bits: token ids in, their vectors and the mean of these out.

Weights have one scale a column; activations have one a text, found as it is read. A few channels of a
BERT are ten times as large as the others and would leave these only some of the 255 steps. So before a
product each channel is divided by a power of what it reaches in SAMPLES, and its row of the matrix is
multiplied by the same (SmoothQuant, arXiv 2211.10438). The last product of a block, whose input has
spikes that no sample foretells, has a scale for every 256 numbers instead. Made so, MiniLM's vectors
have a cosine of 0.9995 with the exact ones (0.994 without, in a bad case 0.94), and a question of
twelve tokens takes one core a third of the time that llama.cpp takes with 8-bit weights. Not here:
which weights (minilm.py), running it (encoder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from kitbash_ray.knowledge.encoder import POOLED, TOKENIZER, TOKENS, Encoder

Array = npt.NDArray[Any]
#: Adds the product of the value `x` with a matrix (out, in), and a bias, as the value `out`; returns its name.
Linear = Callable[["_Graph", str, Array, Array, str], str]

#: How much of a channel's size goes over to the weights: from 0.5 to 0.8 it made no difference.
SHARE = 0.65
#: Numbers with a scale of their own in the last product of a block.
BLOCK = 256
#: Mean cosine with the exact vectors below which a smaller kind of weights is not used.
ALIKE = 0.995

#: Questions and statements of many kinds, for the range of every channel.
SAMPLES = (
    "What is ATP?",
    "which port does redis use",
    "how do I undo the last commit in git but keep my changes",
    "Tungsten melts at 3,422 °C, the highest melting point of all metals.",
    "why is the sky blue at noon and red in the evening",
    "The mitochondrion makes about 30 molecules of ATP from one molecule of glucose by oxidative phosphorylation.",
    "Who wrote it, and when was it published?",
    "An actor that dies is started again up to `max_restarts` times; -1 means without end.",
    "1 + 1",
    "My knee hurts after running 10 km. Should I see a doctor?",
    "A hash table finds a key in O(1) on average and in O(n) at worst.",
    "SELECT name, count(*) FROM orders GROUP BY name HAVING count(*) > 3;",
    "Is a whale a fish or a mammal?",
    "The harbour was opened in 1887, has four quays, and lies 12 miles north of the old town.",
    "explain entropy like I am five",
    "In statistics, the p-value is the probability of a result at least as extreme as the observed one, given the null hypothesis.",
    "What would happen if the moon were twice as far away from the earth as it is now?",
)


@dataclass(frozen=True, slots=True)
class Bert:
    """What the graph is made from: weights as Hugging Face names them, its tokenizer's JSON, what its config says."""

    weights: Mapping[str, Array]
    tokenizer: str
    blocks: int
    heads: int
    norm_epsilon: float


def write_encoder(bert: Bert, target: Path) -> None:
    """Write the graph of `bert` to `target`.

    Where the processor multiplies signed bytes with overflow (AVX2 alone does), the vectors are not
    `ALIKE`: then the weights are unsigned bytes, which takes twice as long, or at last floats.
    """
    exact = float_model(bert)
    reached, wanted = ranges(bert, exact), Encoder(exact.SerializeToString()).read(SAMPLES)
    for signed in (True, False):
        model = byte_model(bert, reached, signed=signed)
        if cosines(Encoder(model.SerializeToString()).read(SAMPLES), wanted).mean() >= ALIKE:
            break
    else:
        model = exact
    target.write_bytes(model.SerializeToString())


def float_model(bert: Bert) -> onnx.ModelProto:
    """The graph with all its products in 32 bits."""
    return _model(bert, _floats, _floats)


def byte_model(bert: Bert, reached: Mapping[str, Array], *, signed: bool) -> onnx.ModelProto:
    """The graph with its products in 8 bits, for channels with these `ranges`."""
    return _model(bert, _bytes(reached, signed), _blocks)


def ranges(bert: Bert, exact: onnx.ModelProto) -> dict[str, Array]:
    """What each channel of the values that `_bytes` multiplies reaches in SAMPLES, by the values' names."""
    names = [f"{name}{block}" for block in range(bert.blocks) for name in ("block", "attended", "between")]
    seen = onnx.ModelProto()
    seen.CopyFrom(exact)
    seen.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    encoder = Encoder(seen.SerializeToString())
    reached: dict[str, Array] = {}
    for text in SAMPLES:
        for name, value in zip(names, encoder.values(text, names), strict=True):
            reached[name] = np.maximum(reached.get(name, np.float32(0)), np.abs(value[0]).max(axis=0))
    return reached


def cosines(some: Array, others: Array) -> Array:
    """Of each row of `some` with the same row of `others`."""
    products: Array = (some * others).sum(axis=1) / np.linalg.norm(some, axis=1) / np.linalg.norm(others, axis=1)
    return products


class _Graph:
    """Nodes and constants under way."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, list(outputs), domain=domain, **attributes))
        return outputs[0]

    def ours(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node of the operators that ONNX Runtime adds."""
        return self.add(kind, inputs, output, domain="com.microsoft", **attributes)


def _model(bert: Bert, linear: Linear, last: Linear) -> onnx.ModelProto:
    """The whole graph, with `linear` for the products of a block and `last` for its last one."""
    graph = _Graph()
    value = _embedded(graph, bert)
    for block in range(bert.blocks):
        value = _block(graph, bert, block, value, linear, last)
    graph.add("ReduceMean", [value, graph.constant("token_axis", np.array([1], np.int64))], POOLED, keepdims=0)
    graph.add("Identity", [value], TOKENS)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "count"])
    width = bert.weights["embeddings.LayerNorm.bias"].size
    pooled = helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, [1, width])
    tokens = helper.make_tensor_value_info(TOKENS, TensorProto.FLOAT, [1, "count", width])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "bert", [ids], [pooled, tokens], graph.constants),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    helper.set_model_props(model, {TOKENIZER: bert.tokenizer})
    return model


def _embedded(graph: _Graph, bert: Bert) -> str:
    """The sum of each token's and its place's vector, normalized."""
    weights = bert.weights
    words = graph.constant("words", weights["embeddings.word_embeddings.weight"].astype(np.float16))
    first_kind = weights["embeddings.token_type_embeddings.weight"][0]
    places = graph.constant("places", weights["embeddings.position_embeddings.weight"] + first_kind)
    zero, one = (graph.constant(f"number_{n}", np.array([n], np.int64)) for n in (0, 1))
    graph.add("Cast", [graph.add("Gather", [words, "ids"], "words_16")], "words_32", to=TensorProto.FLOAT)
    tokens = graph.add("Gather", [graph.add("Shape", ["ids"], "ids_shape"), one], "token_count")
    graph.add("Slice", [places, zero, tokens, zero], "its_places")
    graph.add("Add", ["words_32", "its_places"], "placed")
    return _normalized(graph, bert, "placed", "embeddings.LayerNorm", "block0")


def _block(graph: _Graph, bert: Bert, block: int, value: str, linear: Linear, last: Linear) -> str:
    def matrix(name: str) -> tuple[Array, Array]:
        return bert.weights[f"{prefix}{name}.weight"], bert.weights[f"{prefix}{name}.bias"]

    prefix = f"encoder.layer.{block}."
    parts = [matrix(f"attention.self.{part}") for part in ("query", "key", "value")]
    rows, biases = (np.concatenate(some) for some in zip(*parts, strict=True))
    three = linear(graph, value, rows, biases, f"three{block}")
    widths = graph.constant(f"widths{block}", np.full(3, len(rows) // 3, np.int64))
    single = [f"{part}{block}" for part in ("query", "key", "value")]
    graph.add("Split", [three, widths], *single, axis=2)
    attended = graph.ours("MultiHeadAttention", single, f"attended{block}", num_heads=bert.heads)
    attended = linear(graph, attended, *matrix("attention.output.dense"), f"attention{block}")
    summed = graph.add("Add", [attended, value], f"attended_sum{block}")
    between = _normalized(graph, bert, summed, f"{prefix}attention.output.LayerNorm", f"between{block}")
    wide = linear(graph, between, *matrix("intermediate.dense"), f"wider{block}")
    wide = graph.ours("Gelu", [wide], f"wide{block}")
    narrow = last(graph, wide, *matrix("output.dense"), f"narrow{block}")
    summed = graph.add("Add", [narrow, between], f"narrow_sum{block}")
    return _normalized(graph, bert, summed, f"{prefix}output.LayerNorm", f"block{block + 1}")


def _normalized(graph: _Graph, bert: Bert, x: str, norm: str, out: str) -> str:
    gain, bias = (graph.constant(f"{out}_{part}", bert.weights[f"{norm}.{part}"]) for part in ("weight", "bias"))
    return graph.add("LayerNormalization", [x, gain, bias], out, epsilon=bert.norm_epsilon)


def _floats(graph: _Graph, x: str, matrix: Array, bias: Array, out: str) -> str:
    product = graph.add("MatMul", [x, graph.constant(f"{out}_matrix", matrix.T)], f"{out}_product")
    return graph.add("Add", [product, graph.constant(f"{out}_bias", bias)], out)


def _bytes(reached: Mapping[str, Array], signed: bool) -> Linear:
    """Products in 8 bits, with channels smoothed by what they reach."""

    def linear(graph: _Graph, x: str, matrix: Array, bias: Array, out: str) -> str:
        smooth = np.maximum(reached[x], 1e-3) ** SHARE / np.maximum(np.abs(matrix).max(axis=0), 1e-3) ** (1 - SHARE)
        columns = (matrix * smooth).T
        scale = np.abs(columns).max(axis=0) / 127
        steps = np.round(columns / scale)
        zero, kind = (0, np.int8) if signed else (128, np.uint8)
        smoothed = graph.add("Mul", [x, graph.constant(f"{out}_smooth", (1 / smooth).astype(np.float32))], f"{out}_smoothed")
        inputs = {"matrix": (steps + zero).astype(kind), "scale": scale.astype(np.float32),
                  "zero": np.full(scale.shape, zero, kind), "bias": bias}  # fmt: skip
        return graph.ours(
            "DynamicQuantizeMatMul", [smoothed, *(graph.constant(f"{out}_{name}", made) for name, made in inputs.items())], out
        )

    return linear


def _blocks(graph: _Graph, x: str, matrix: Array, bias: Array, out: str) -> str:
    """A product in 8 bits with a scale for each BLOCK of numbers of both sides."""
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows, columns // BLOCK, BLOCK)
    scale = np.abs(blocks).max(axis=2) / 127
    made = {"matrix": (np.round(blocks / scale[..., None]) + 128).astype(np.uint8), "scale": scale.astype(np.float32)}
    inputs = [x, *(graph.constant(f"{out}_{name}", value) for name, value in made.items()), "", ""]
    inputs.append(graph.constant(f"{out}_bias", bias))
    sizes = {"K": columns, "N": rows, "bits": 8, "block_size": BLOCK}
    return graph.ours("MatMulNBits", inputs, out, accuracy_level=4, **sizes)  # 4: multiply in 8 bits
