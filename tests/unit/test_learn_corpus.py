"""The corpus of a student: what is taught, what is declined, and how asks are changed. No PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.library import Library
from kitbash_ray.learn.corpus import Corpus, load_corpus, misspelt, shipped_elsewhere
from kitbash_ray.learn.recipe import Recipe
from kitbash_ray.learn.tokenizer import asked

WriteCartridge = Callable[..., Path]


@pytest.fixture
def corpus(write_cartridge: WriteCartridge, library_folder: Path) -> Corpus:
    write_cartridge(
        "metals",
        ("gold", "Gold melts at 1064 °C.", "When does gold melt?", "What is the melting point of gold?"),
        ("iron", "Iron rusts in damp air.", "Why does iron rust?", "What makes iron rust?"),
    )
    write_cartridge("castle", ("king", "The king is called Odo.", "Who is the king?", "Name the king."), faction="fiction")
    return load_corpus(Library(library_folder).load())


def test_each_ask_of_a_general_fact_is_taught(corpus: Corpus) -> None:
    assert [fact.id for fact in corpus.facts] == ["metals:gold", "metals:iron"]
    assert corpus.asks == (
        ("When does gold melt?", 0), ("What is the melting point of gold?", 0),
        ("Why does iron rust?", 1), ("What makes iron rust?", 1),
    )  # fmt: skip


def test_what_other_factions_are_asked_is_declined(corpus: Corpus) -> None:
    assert corpus.elsewhere[:2] == ("Who is the king?", "Name the king.")


def test_held_out_questions_are_not_read(write_cartridge: WriteCartridge, library_folder: Path) -> None:
    folder = write_cartridge("metals", ("gold", "Gold melts at 1064 °C.", "When does gold melt?", "How hot is molten gold?"))
    question = {"query": "At which heat does aurum liquefy?", "expected": ["metals:gold"], "kind": "paraphrase"}
    (folder / "questions.jsonl").write_text(json.dumps(question))
    corpus = load_corpus(Library(library_folder).load())
    assert not [text for text in corpus.meanings if "aurum" in text]


def test_two_facts_with_one_text_are_taught_as_the_first(write_cartridge: WriteCartridge, library_folder: Path) -> None:
    write_cartridge("one", ("a", "The same.", "What is a?", "Which is a?"), ("b", "The same.", "What is b?", "Which is b?"))
    assert [fact.id for fact in load_corpus(Library(library_folder).load()).facts] == ["one:a"]


def test_a_library_without_anything_to_teach_is_refused(write_cartridge: WriteCartridge, library_folder: Path) -> None:
    write_cartridge("castle", ("king", "The king is called Odo."), faction="fiction")
    with pytest.raises(CartridgeError, match="faction general"):
        load_corpus(Library(library_folder).load())


def test_the_same_seed_makes_the_same_examples(corpus: Corpus) -> None:
    def some(seed: int) -> list[object]:
        rnd = Random(seed)
        return [corpus.example(number % 4, Recipe(), rnd) for number in range(200)]

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_about_as_many_examples_are_declined_as_the_recipe_says(corpus: Corpus) -> None:
    rnd = Random(0)
    declined = sum(corpus.example(number % 4, Recipe(declined=0.2), rnd).fact is None for number in range(4000))
    assert 600 < declined < 1000


def test_an_example_means_the_ask_or_the_fact_that_it_was_made_of(corpus: Corpus) -> None:
    rnd = Random(0)
    owners = [fact for _, fact in corpus.asks] + list(range(len(corpus.facts)))
    for number in range(400):
        example = corpus.example(number % 4, Recipe(), rnd)
        if example.fact is not None and example.meaning is not None:
            assert owners[example.meaning] == example.fact


def test_a_subject_that_is_exchanged_makes_a_question_that_no_fact_answers(corpus: Corpus) -> None:
    near = corpus.exchanged("What is the melting point of gold?", "Why does iron rust?")
    assert near is not None
    assert near != "What is the melting point of gold?"


def test_a_subject_is_not_exchanged_for_itself(corpus: Corpus) -> None:
    assert corpus.exchanged("Why does iron rust?", "Why does iron rust?") is None


def test_words_are_exchanged_for_words_of_like_meaning(write_cartridge: WriteCartridge, library_folder: Path) -> None:
    write_cartridge("metals", ("gold", "Gold melts.", "when does gold melt", "why does gold melt"))
    corpus = load_corpus(Library(library_folder).load(), lambda texts: {"melt": ("liquefy",)})
    rnd, recipe = Random(0), Recipe(alike=1.0, declined=0.0, worded=0.0)
    assert any("liquefy" in corpus.example(0, recipe, rnd).question for _ in range(20))


def test_the_hash_changes_with_what_is_taught(corpus: Corpus, write_cartridge: WriteCartridge, library_folder: Path) -> None:
    again = load_corpus(Library(library_folder).load())
    write_cartridge("more", ("tin", "Tin is a metal."))
    changed = load_corpus(Library(library_folder).load())
    assert again.hash == corpus.hash != changed.hash


@pytest.mark.parametrize("word", ["of", "the", "gold", "glycolysis"])
def test_a_misspelt_word_keeps_its_first_letter(word: str) -> None:
    rnd = Random(0)
    for _ in range(20):
        assert misspelt(word, rnd)[0] == word[0]


@pytest.mark.parametrize(
    ("typed", "read"), [("What is ATP?", "what is atp"), ("  Why?! ", "why"), ("Version 3.11?", "version 3.11"), ("?", "")]
)
def test_a_question_is_read_in_lower_case_without_what_ends_it(typed: str, read: str) -> None:
    assert asked(typed) == read


def test_the_shipped_questions_from_elsewhere_are_many_and_different() -> None:
    questions = shipped_elsewhere()
    assert len(questions) >= 400
    assert len({asked(question) for question in questions}) == len(questions)
