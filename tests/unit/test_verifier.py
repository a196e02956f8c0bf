"""What the verifier reads."""

import pytest

from kitbash_ray.knowledge.evidence import Candidate
from kitbash_ray.knowledge.verifier import nearest_ask, side_by_side

ASKS = ("what is ATP", "what carries energy in cells")


@pytest.mark.parametrize(
    ("ask", "text"),
    [("what is ATP", "which molecule || what is ATP || ATP carries energy."), ("", "which molecule || ATP carries energy.")],
)
def test_question_and_fact_are_one_text(ask: str, text: str) -> None:
    assert side_by_side("which molecule", "ATP carries energy.", ask) == text


@pytest.mark.parametrize(
    ("asks", "cosines", "nearest"),
    [
        (ASKS, (0.9, 0.2, 0.3), ASKS[1]),  # the statement's cosine comes first and does not count
        (ASKS, (0.1, 0.5, 0.3), ASKS[0]),
        ((), (0.9,), ""),
    ],
)
def test_the_nearest_way_to_ask_is_read(asks: tuple[str, ...], cosines: tuple[float, ...], nearest: str) -> None:
    assert nearest_ask(Candidate("ATP carries energy.", asks, "ATP carries energy.", 0.9, cosines)) == nearest
