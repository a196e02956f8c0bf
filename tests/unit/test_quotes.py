"""Quoting a passage: which sentence, which words, how sure."""

from __future__ import annotations

import numpy as np
import pytest

from kitbash_ray.calibration import LEAF, Node
from kitbash_ray.knowledge.extractor import Extractor
from kitbash_ray.knowledge.grain_index import Grain
from kitbash_ray.knowledge.quotes import CONFIDENCE_FEATURES, READ_FEATURES, Trees, load_quote_fit, quotable, quote, weigh
from kitbash_ray.knowledge.retrieval import Found
from kitbash_ray.knowledge.spans import FEATURES, sentences
from kitbash_ray.types import Source

DAM = (
    "The Varnholt dam was built by Ines Holm in 1932. It holds 40 million litres of water. "
    "Trout and pike were brought into the lake from Norway. The mills below it closed after a flood."
)
ORCHARD = "Apples are picked in autumn. The orchard belongs to the school of Tarn."


def always_rare(_: str) -> float:
    return 1.0


def passage(text: str, *, order: float = 0.8, cosines: tuple[float, ...] = ()) -> Found:
    places = sentences(text)
    its = cosines or (0.5,) * len(places)
    parts = tuple((start, end, cosine) for (start, end), cosine in zip(places, its, strict=True))
    grain = Grain(Source("house", f"house:{text[:5]}", text, 1.0), ())
    return Found(grain, text, max(its), (max(its),), np.zeros(4, np.float32), order, parts)


@pytest.mark.parametrize(
    ("question", "sentence", "words"),
    [
        ("Who built the Varnholt dam?", "The Varnholt dam was built by Ines Holm in 1932.", "Ines Holm"),
        ("When was the Varnholt dam built?", "The Varnholt dam was built by Ines Holm in 1932.", "1932"),
        ("How many litres of water does it hold?", "It holds 40 million litres of water.", "40 million"),
    ],
)
def test_the_sentence_that_answers_is_quoted_and_the_words_in_it(
    question: str, sentence: str, words: str, extractor: Extractor
) -> None:
    said = quote(question, [passage(DAM), passage(ORCHARD, order=0.3)], always_rare, load_quote_fit(), extractor)
    assert said is not None
    assert said.sentence == sentence
    assert words in said.words
    assert said.words in said.sentence


def test_a_question_that_the_passage_answers_is_surer_than_one_about_something_else(extractor: Extractor) -> None:
    fit = load_quote_fit()
    here = quote("Who built the Varnholt dam?", [passage(DAM)], always_rare, fit, extractor)
    nowhere = quote("Who painted the Lisbon cathedral?", [passage(DAM, order=0.1)], always_rare, fit, extractor)
    assert here is not None
    assert nowhere is not None
    assert 0 < nowhere.confidence < here.confidence < 1


@pytest.mark.parametrize("found", [[], [passage("It was.")]])
def test_where_there_is_nothing_to_quote_nothing_is_said(found: list[Found], extractor: Extractor) -> None:
    assert quote("Who was it?", found, always_rare, load_quote_fit(), extractor) is None


def test_every_feature_has_its_number(extractor: Extractor) -> None:
    choice = quotable("Who built the Varnholt dam?", [passage(DAM)], always_rare, extractor)
    assert choice.features.shape[1] == len(FEATURES) + len(READ_FEATURES)
    _, features = weigh(choice, np.arange(len(choice.candidates.places), dtype=float), always_rare)
    assert len(features) == len(CONFIDENCE_FEATURES)


def test_sentences_come_from_all_passages_by_cosine_and_shared_words(extractor: Extractor) -> None:
    near = passage(ORCHARD, cosines=(0.1, 0.9))
    choice = quotable("To whom does the orchard belong?", [passage(DAM), near], always_rare, extractor)
    assert choice.sentences[0][2].text == "The orchard belongs to the school of Tarn."


def test_trees_give_each_row_the_sum_of_its_leaves_and_the_bias() -> None:
    split: list[Node] = [(0, 0.5, 1, 2, 0.0), (LEAF, 0.0, 0, 0, 1.0), (1, 0.0, 3, 4, 0.0),
                         (LEAF, 0.0, 0, 0, 2.0), (LEAF, 0.0, 0, 0, 4.0)]  # fmt: skip
    alone: list[Node] = [(LEAF, 0.0, 0, 0, 8.0)]
    rows = np.array([[0.5, 9.0], [0.6, 0.0], [0.6, 0.1]])
    assert Trees([split, alone], 16.0)(rows).tolist() == [25.0, 26.0, 28.0]
    assert Trees([], 16.0)(rows).tolist() == [16.0] * 3
