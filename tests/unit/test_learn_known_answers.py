"""Known answers: when a beginning belongs to one text alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitbash_ray.errors import ModelError
from kitbash_ray.layers.known_answers import KnownAnswers, read_answers, write_answers
from kitbash_ray.types import Source


def source(text: str, fact: str = "c:f", reference: str | None = "a book") -> Source:
    return Source("c", fact, text, 1.0, reference)


KNOWN = KnownAnswers(
    [source("Gold is soft.", "c:gold"), source("Gold melts late.", "c:melts"), source("Iron rusts.", "c:iron")]
)


def test_a_beginning_of_one_text_alone_is_completed_with_its_source() -> None:
    found = KNOWN.complete("Gold m")
    assert found is not None
    assert (found.fact_id, found.text, found.reference) == ("c:melts", "Gold melts late.", "a book")


def test_a_beginning_of_several_texts_is_not_completed_but_may_go_on() -> None:
    assert KNOWN.complete("Gold ") is None
    assert KNOWN.begins_any("Gold ")


@pytest.mark.parametrize("text", ["Silver", "Gold is soft. And", "gold", "~"])
def test_a_text_that_begins_no_fact_is_neither_completed_nor_gone_on_with(text: str) -> None:
    assert KNOWN.complete(text) is None
    assert not KNOWN.begins_any(text)


def test_the_whole_text_of_a_fact_is_completed_too() -> None:
    assert KNOWN.complete("Iron rusts.") == source("Iron rusts.", "c:iron")


def test_nothing_said_is_the_beginning_of_everything_and_completed_never() -> None:
    assert KNOWN.begins_any("")
    assert KnownAnswers([source("Only one.")]).complete("") is None


def test_without_answers_nothing_begins_one() -> None:
    assert not KnownAnswers([]).begins_any("")


def test_of_two_facts_with_the_same_text_the_first_counts() -> None:
    both = KnownAnswers([source("Same.", "c:first"), source("Same.", "c:second")])
    found = both.complete("Sa")
    assert len(both) == 1
    assert found is not None
    assert found.fact_id == "c:first"


def test_texts_that_go_on_with_the_rarest_characters_are_found() -> None:
    known = KnownAnswers([source("A\U0001f600b"), source("A\U0001f600c")])
    assert known.begins_any("A")
    assert known.complete("A\U0001f600c") == source("A\U0001f600c")


def test_answers_on_disk_come_back_as_they_were(tmp_path: Path) -> None:
    sources = [source("Gold is soft."), source('It is "25 °C".', "c:g", None)]
    write_answers(tmp_path / "answers.jsonl", sources)
    assert read_answers(tmp_path / "answers.jsonl") == sources


@pytest.mark.parametrize("text", ["no json\n", '{"cartridge": "c"}\n', "[]\n"])
def test_a_damaged_file_of_answers_is_a_model_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ModelError, match="kitbash distil"):
        read_answers(path)


def test_a_missing_file_of_answers_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_answers(tmp_path / "answers.jsonl")
