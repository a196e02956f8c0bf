"""Words of like meaning, by the vectors of single words that MiniLM starts from. Nothing is computed by the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import numpy as np

from kitbash_ray.knowledge.minilm import read_weights, weights_folder

#: Words that say what is asked for, or turn a sense round: their neighbours mean something else.
KEPT = frozenset(
    "who what when where which why how whose many much not no never without and or before after first last more less most "
    "least one two three four five six seven eight nine ten min max left right north south east west up down in out on off "
    "hot cold high low true false yes all none every any same different".split()
)
NEIGHBOURS, COSINE = 5, 0.55


def alike_words(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each lower-case word of `texts` that has any: up to five words of like meaning."""
    numbers: dict[str, int] = json.loads((weights_folder() / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in numbers if re.fullmatch("[a-z]{3,}", word) and word not in KEPT]
    table = np.asarray(read_weights()["embeddings.word_embeddings.weight"], np.float32)[[numbers[word] for word in words]]
    table -= table.mean(0)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    at = {word: place for place, word in enumerate(words)}
    wanted = sorted({word for text in texts for word in re.findall("[a-z]+", text.lower())} & at.keys())
    found: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(wanted), 512):
        part = wanted[start : start + 512]
        cosines = table[[at[word] for word in part]] @ table.T
        for row, word in enumerate(part):
            order = np.argsort(-cosines[row])[1 : NEIGHBOURS + 1]
            near = tuple(words[place] for place in order if cosines[row, place] >= COSINE)
            if near:
                found[word] = near
    return found
