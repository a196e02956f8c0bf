"""The words of a sentence that may answer a question."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kitbash_ray.knowledge.spans import FEATURES, MAX_WORDS, Sentence, candidates, sentences

TEXT = "Dr. Ines Holm built the Varnholt dam in 1932. It holds 40 million litres of water, e.g. for mills."


def always_rare(_: str) -> float:
    return 1.0


def features_of(question: str, text: str, words: str) -> dict[str, float]:
    """The features of the candidate `words`."""
    found = candidates(question, [Sentence(text, 0.5, 0.5, 0.5)], always_rare)
    texts = [text[first:last] for _, first, last in found.places]
    return dict(zip(FEATURES, found.features[texts.index(words)], strict=True))


def texts_of(text: str, question: str = "Who built the dam?") -> set[str]:
    found = candidates(question, [Sentence(text, 0.5, 0.5, 0.5)], always_rare)
    return {text[first:last] for _, first, last in found.places}


def test_abbreviations_and_initials_end_no_sentence() -> None:
    assert [TEXT[start:end] for start, end in sentences(TEXT)] == [
        "Dr. Ines Holm built the Varnholt dam in 1932.",
        "It holds 40 million litres of water, e.g. for mills.",
    ]
    assert len(sentences("It was made by J. K. Brandt and the U.S. Army in St. Anton. Nobody knows why.")) == 2


@pytest.mark.parametrize(
    "text", ["", "   ", "no end", "One. Two! Three?", "「何？」。まだ。", 'He said "go." Then he left.\n\nEnd']
)
def test_sentences_lose_no_letter_and_do_not_overlap(text: str) -> None:
    found = sentences(text)
    assert "".join(text[start:end] for start, end in found).replace(" ", "") == "".join(text.split())
    assert all(end <= start for (_, end), (start, _) in pairwise(found))


def test_a_candidate_neither_begins_nor_ends_with_a_joining_word() -> None:
    found = texts_of("The dam in the valley was built by the brothers.")
    assert {"dam", "valley", "dam in the valley", "brothers"} <= found
    assert not found & {"The dam", "in the valley", "built by", "by the brothers"}


def test_no_candidate_crosses_a_bracket_or_is_too_long() -> None:
    found = texts_of("The dam (finished late) stands between nine old quiet small grey stone mills near town.")
    assert "finished late" in found
    assert not any("(" in words or ")" in words for words in found)
    assert max(len(words.split()) for words in found) <= MAX_WORDS


def test_a_sentence_of_joining_words_alone_has_no_candidate() -> None:
    assert texts_of("It was.") == set()
    assert candidates("Who?", [], always_rare).features.shape == (0, len(FEATURES))


def test_the_kind_of_thing_is_counted() -> None:
    year = features_of("When was the dam built?", "The dam was built in May 1932.", "May 1932")
    assert (year["years"], year["months"], year["digits"]) == (1, 1, 1)
    name = features_of("Who built the dam?", "The dam was built by Ines Holm.", "Ines Holm")
    assert (name["names"], name["digits"], name["capital_first"]) == (2, 0, 1)


def test_what_a_question_names_after_what_is_sorted() -> None:
    sorts = {
        features_of(question, "The dam stands in Varnholt.", "Varnholt")["sort"]
        for question in ("What city has the dam?", "Which year saw the dam?", "What king owned the dam?", "What is the dam?")
    }
    assert len(sorts) == 4


def test_the_words_of_the_question_are_far_or_near() -> None:
    text = "Ines Holm built the dam after a flood that her sister Greta had foreseen."
    near = features_of("Who built the dam?", text, "Ines Holm")
    far = features_of("Who built the dam?", text, "sister Greta")
    assert near["right_distance"] < far["left_distance"]
    assert near["near_weight"] > far["near_weight"]
    assert near["next_asked_right"] == 1


def test_a_name_cut_in_two_is_marked() -> None:
    text = "The dam was built by Ines Holm in a year."
    assert features_of("Who built the dam?", text, "Ines")["name_goes_on_right"] == 1
    assert features_of("Who built the dam?", text, "Ines Holm")["name_goes_on_right"] == 0


def test_words_that_the_question_has_are_weighed_inside_a_candidate() -> None:
    text = "The dam was built by Ines Holm."
    assert features_of("Who built the dam?", text, "dam")["asked_inside"] == 1
    assert features_of("Who built the dam?", text, "Ines Holm")["asked_inside"] == 0
