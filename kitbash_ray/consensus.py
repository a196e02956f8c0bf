"""What several opinions weigh together. A signal for the policy; it never deletes an answer.

Two answers agree when they mean the same, however long they are: they cite the same fact, or
their texts lie near each other and neither their numbers nor a negation set them apart.
Pure; whoever has a model of meaning passes the cosine in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kitbash_ray.knowledge.text import read
from kitbash_ray.types import LayerResult

#: Cosines of two answers at and below which they are different things, and at and above which the
#: same. MiniLM puts two facts on one subject near 0.5, and a fact said in other words above 0.8.
DIFFERENT, SAME = 0.5, 0.8


def simple_average(confidences: Sequence[float]) -> float:
    """The mean of several confidences; 0 of none."""
    return sum(confidences) / len(confidences) if confidences else 0.0


def weighted_average(confidences: Mapping[str, float], accuracies: Mapping[str, float]) -> float:
    """The mean of each layer's confidence, weighted by how often that layer is right; 0 of none."""
    total = sum(accuracies[layer] for layer in confidences)
    return sum(confidences[layer] * accuracies[layer] for layer in confidences) / total if total else 0.0


def cite_the_same(first: LayerResult, second: LayerResult) -> bool:
    """Whether both answers rest on one fact first of all."""
    return bool(first.sources and second.sources) and first.sources[0].fact_id == second.sources[0].fact_id


def agreement(first: str, second: str, cosine: float) -> float:
    """How far (0 to 1) two texts whose embeddings have this cosine say the same."""
    ours, theirs = read(first), read(second)
    if ours.negated != theirs.negated or (ours.numbers and theirs.numbers and not ours.numbers & theirs.numbers):
        return 0.0
    return min(1.0, max(0.0, (cosine - DIFFERENT) / (SAME - DIFFERENT)))


def doubted(confidence: float, other: float, agrees: float) -> float:
    """`confidence` in an answer once another is known that is right with probability `other`.

    Of two different answers at most one is right, so what speaks for the one speaks against the
    other; as far as they agree, nothing changes.
    """
    against = other * (1 - agrees)
    return confidence * (1 - against) / (1 - confidence * against) if confidence * against < 1 else 0.0
