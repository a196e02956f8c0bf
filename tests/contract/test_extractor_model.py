"""The shipped extractor under ONNX Runtime."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kitbash_ray.knowledge.extractor import LEAST, Extractor, Reading

DAM = (
    "The Varnholt dam was built by Ines Holm in 1932. It holds 40 million litres of water. "
    "Trout and pike were brought into the lake from Norway."
)
ORCHARD = "Apples are picked in autumn. The orchard belongs to the school of Tarn."


def likelihood(reading: Reading, passage: str, words: str) -> float:
    """The log-probability that `words` are the answer."""
    first = np.array([passage.index(words)])
    return float(reading.begins_at(first)[0] + reading.ends_before(first + len(words))[0])


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Who built the Varnholt dam?", "Ines Holm"),
        ("When was the Varnholt dam built?", "1932"),
        ("Where did the trout come from?", "Norway"),
    ],
)
def test_the_words_that_answer_are_likelier_than_others(extractor: Extractor, question: str, words: str) -> None:
    [reading] = extractor.read(question, [DAM])
    likely = likelihood(reading, DAM, words)
    assert all(likely > likelihood(reading, DAM, other) for other in ("Ines Holm", "1932", "Norway", "water") if other != words)


def test_a_passage_that_answers_gets_higher_odds_than_one_about_something_else(extractor: Extractor) -> None:
    dam, orchard = extractor.read("Who built the Varnholt dam?", [DAM, ORCHARD])
    assert dam.answered > orchard.answered


def test_passages_do_not_disturb_each_other(extractor: Extractor) -> None:
    question = "When are apples picked?"
    together = extractor.read(question, [DAM, ORCHARD])
    alone = [extractor.read(question, [passage])[0] for passage in (DAM, ORCHARD)]
    for one, other in zip(together, alone, strict=True):
        assert one.answered == other.answered
        np.testing.assert_array_equal(one.begins, other.begins)


def test_of_a_long_passage_the_end_is_not_read(extractor: Extractor) -> None:
    long = "word " * 500 + "end"
    [reading] = extractor.read("what comes at the end", [long])
    assert reading.begins_at(np.array([0]))[0] > LEAST
    assert reading.begins_at(np.array([len(long) - 3]))[0] == LEAST
    assert math.isclose(np.exp(reading.begins).sum(), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("question", ["", "?", "x" * 4000, "鯨は魚ですか", "a\x00b", "word " * 400])
def test_any_question_is_read(extractor: Extractor, question: str) -> None:
    for reading in extractor.read(question, [DAM, "", "…"]):
        assert math.isfinite(reading.answered)
        assert np.isfinite(reading.begins_at(np.array([0, 5]))).all()
        assert np.isfinite(reading.ends_before(np.array([1, 6]))).all()


def test_no_passages_get_no_reading(extractor: Extractor) -> None:
    assert extractor.read("what is ATP", []) == []
