"""What several opinions weigh together. A signal for the policy; it never deletes an answer.

Pure. Weights from measured accuracy come with the data for them.
"""

from __future__ import annotations

from collections.abc import Sequence


def simple_average(confidences: Sequence[float]) -> float:
    """The mean of several confidences; 0 of none."""
    return sum(confidences) / len(confidences) if confidences else 0.0
