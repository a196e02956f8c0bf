"""A transformer encoder under ONNX Runtime: texts to the vectors of their tokens, and to the mean of these.

Each text is read by one thread, which is faster than many for a text of a question's length and
disturbs no other program; many texts are read by several threads side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitbash_ray.errors import ModelError

Vectors = npt.NDArray[np.float32]

#: Characters where tokens begin and end, shape (tokens, 2).
Places = npt.NDArray[np.intp]

#: The outputs of a graph: the mean of all tokens' vectors, and these.
POOLED, TOKENS = "pooled", "tokens"
#: The metadata of a graph that has its tokenizer in it, as Hugging Face writes it.
TOKENIZER = "tokenizer"


class Encoder:
    """A graph of bert_graph.py in this process. Safe to use from several threads."""

    def __init__(self, model: Path | bytes, *, max_tokens: int = 256, threads: int = 1) -> None:
        """Load `model`. Raises ModelError when it is none of ours, or broken."""
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The graph has the operators that it should have. Joined further, a sum and its normalization take thrice as long.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        given = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_str(self._session.get_modelmeta().custom_metadata_map[TOKENIZER])
        except Exception as error:  # ONNX Runtime raises a class of its own for each of its codes, without a base
            raise ModelError(f"{str(model)[:200]!r} is no encoder: {error}. Delete it, and it is made anew.") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._threads = ThreadPoolExecutor(threads, "encoder")
        self.dimensions = int(self._session.get_outputs()[0].shape[1])

    def read(self, texts: Sequence[str]) -> Vectors:
        """Mean vectors of `texts`, shape (len(texts), dimensions), float32, of any length."""
        if len(texts) < 2:
            return np.concatenate([np.zeros((0, self.dimensions), np.float32), *map(self._read, texts)])
        return np.concatenate(list(self._threads.map(self._read, texts)))

    def read_tokens(self, texts: Sequence[str]) -> list[tuple[Vectors, Places]]:
        """Of each text its tokens' vectors, shape (tokens, dimensions), and where each token begins and ends in it.

        A token that is no part of the text begins and ends at 0.
        """
        return list(self._threads.map(self._read_tokens, texts))

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens are read of all of `texts`."""
        return sum(len(self._tokenizer.encode(text).ids) for text in texts)

    def values(self, text: str, names: Sequence[str]) -> list[Any]:
        """The outputs `names` of the graph for one text."""
        return self._run(self._tokenizer.encode(text).ids, names)

    def _run(self, ids: Sequence[int], names: Sequence[str]) -> list[Any]:
        return list(self._session.run(list(names), {"ids": np.array([ids], np.int64)}))

    def _read(self, text: str) -> Vectors:
        vector: Vectors = self.values(text, [POOLED])[0]
        return vector

    def _read_tokens(self, text: str) -> tuple[Vectors, Places]:
        tokens = self._tokenizer.encode(text)
        vectors: Vectors = self._run(tokens.ids, [TOKENS])[0][0]
        return vectors, np.array(tokens.offsets, np.intp)
