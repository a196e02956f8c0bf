"""Questions with known answers: reading them, and telling whether an answer is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.questions import Question, cited, read_questions
from kitbash_ray.types import Answer, LayerResult, Source

ATP = Source("bio", "bio:atp", "ATP carries energy.", 0.9)
DNA = Source("bio", "bio:dna", "DNA carries genes.", 0.8)


def said(text: str, *sources: Source) -> LayerResult:
    return LayerResult("cartridge", "answered", text=text, sources=sources)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ATP carries energy. [1]", (ATP,)),
        ("ATP carries energy. [1] DNA carries genes. [2]", (ATP, DNA)),
        ("ATP carries energy.", (ATP,)),  # a whole source in the text is cited too
        ("Something of its own.", ()),  # sources that were only looked at are not
        ("See [7].", ()),
    ],
)
def test_a_text_cites_sources_by_number_or_by_saying_them(text: str, found: tuple[Source, ...]) -> None:
    assert cited(text, (ATP, DNA)) == found


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (Question("q", ("bio:atp",)), said("ATP carries energy. [1]", ATP, DNA), True),
        (Question("q", ("bio:dna",)), said("ATP carries energy. [1]", ATP, DNA), False),
        (Question("q", ("bio:dna", "bio:atp")), said("ATP carries energy. [1]", ATP), True),
        (Question("q", (), ("the mitochondria",)), said("It is in The Mitochondria!"), True),
        (Question("q", (), ("mito",)), said("It is in the mitochondria."), False),
        (Question("q"), said("ATP carries energy. [1]", ATP), False),
    ],
)
def test_an_answer_is_right_by_the_fact_it_cites_or_the_words_it_says(
    question: Question, answer: LayerResult, right: bool
) -> None:
    assert question.right(answer) is right


def test_the_best_guess_of_an_abstention_is_judged_like_an_answer() -> None:
    guess = Answer("q_1", "q", "abstained", candidate="ATP carries energy. [1]", sources=(ATP,))
    assert Question("q", ("bio:atp",)).right(guess)


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"query": "What is ATP?", "expected": ["bio:atp"], "kind": "paraphrase"}\n\n{"query": "Who won?"}\n')
    first, second = read_questions(path)
    assert (first.query, first.expected, first.kind, first.answerable) == ("What is ATP?", ("bio:atp",), "paraphrase", True)
    assert (second.query, second.answerable) == ("Who won?", False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no question"),
        ("no JSON\n", ":1: "),
        ('{"query": "fine"}\n{"queri": "x"}\n', ":2: "),
        ('{"query": 3}\n', ":1: "),
        ('{"query": " "}\n', "empty"),
        ('{"query": "x", "expected": "bio:atp"}\n', ":1: "),
        ('["query"]\n', ":1: "),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_what_is_wrong(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    with pytest.raises(CartridgeError, match=says):
        read_questions(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CartridgeError, match=r"nowhere.jsonl"):
        read_questions(tmp_path / "nowhere.jsonl")
