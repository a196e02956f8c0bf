"""What people see of an answer that nobody was sure of."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from kitbash_ray.render import answer_html, answer_panel
from kitbash_ray.types import Answer

GUESS = "Timsort was written by Tim Peters."


def shown(answer: Answer) -> tuple[str, str]:
    """In a terminal and in a notebook."""
    console = Console(file=StringIO(), width=200)
    console.print(answer_panel(answer))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue(), answer_html(answer)


@pytest.mark.parametrize(("confidence", "there"), [(None, True), (0.4, True), (0.1, True), (0.02, False)])
def test_a_best_guess_is_shown_where_it_may_be_right(confidence: float | None, there: bool) -> None:
    for text in shown(Answer("q_1", "Who wrote Hamlet?", "abstained", candidate=GUESS, confidence=confidence)):
        assert (GUESS in text) == there
        assert "Who wrote Hamlet?" in text


def test_without_a_candidate_there_is_no_word_of_a_guess() -> None:
    for text in shown(Answer("q_1", "Who wrote Hamlet?", "abstained")):
        assert "guess" not in text.lower()
