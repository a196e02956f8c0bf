"""Unit tests of the checks on the working of an answer."""

from __future__ import annotations

import pytest

from benchmarks.working import FEATURES, evaluate, final, measure, sums

QUESTION = "A baker fills 6 trays with 15 rolls each and sells 70 rolls. How many rolls are left?"
GOOD = "There are 6 * 15 = <<6*15=90>>90 rolls.\nAfter the sale 90 - 70 = <<90-70=20>>20 rolls are left.\n#### 20"


def feature(name: str, answer: str, question: str = QUESTION) -> float:
    return dict(zip(FEATURES, measure(question, answer), strict=True))[name]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2 + 3 * 4", 14.0), ("(2+3)*4", 20.0), ("-5 + 2", -3.0), ("1,200 / 4", 300.0), ("25% * 80", 20.0), (".5 * 8", 4.0)],
)
def test_a_sum_is_computed(text: str, value: float) -> None:
    assert evaluate(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1 / 0", "9 ** 9", "exit()", "a + 1", "'2' + '2'", "True + 1j", "", "1 +", "1+" * 200 + "1"])
def test_what_is_no_plain_sum_is_not_computed(text: str) -> None:
    assert evaluate(text) is None


@pytest.mark.parametrize(
    "answer",
    [
        "He has 4 * 12 = <<4*12=48>>48 eggs.",
        "He has 4 x 12 = 48 eggs.",
        "He has 4 boxes × 12 eggs = 48 eggs.",
        "That is $4 * 12 (eggs in a box) = $48.",
        r"That is 4 \* 12 = 48.",
    ],
)
def test_a_sum_is_read_however_it_is_written(answer: str) -> None:
    (step,) = sums(answer)
    assert step.terms == (4.0, 12.0)
    assert step.holds


def test_a_sum_that_does_not_come_out_is_noticed() -> None:
    assert feature("wrong_sum", "6 * 15 = <<6*15=80>>80\n#### 80") == 1
    assert feature("wrong_sum", GOOD) == 0


def test_rounding_is_no_mistake() -> None:
    assert sums("20 / 3 = 6.67")[0].holds
    assert sums("20 / 3 = 7")[0].holds
    assert not sums("20 / 3 = 6.5")[0].holds


def test_a_sum_that_goes_on_from_its_result_holds() -> None:
    assert [step.holds for step in sums("45 - 5 = 40 / 2 = 20")] == [True, True]


def test_the_last_mark_tells_the_final_answer() -> None:
    assert final("#### 5\nNo:\n#### $1,250.50 a year") == 1250.5
    assert final("It is 5.") is None
    assert feature("no_final", "It is 5.") == 1


def test_a_sound_answer_raises_no_suspicion() -> None:
    suspicions = ("no_final", "final_fraction", "final_differs", "wrong_sum", "unworked", "unused_given", "unnamed_given")
    assert {name: feature(name, GOOD) for name in suspicions} == dict.fromkeys(suspicions, 0.0)


def test_numbers_of_the_question_that_no_sum_uses_are_counted() -> None:
    assert feature("unused_given", "6 * 15 = 90\n#### 90") == pytest.approx(1 / 3)


def test_a_percent_may_be_used_as_a_share() -> None:
    question = "A coat of $80 is 25% off. What does it cost?"
    assert feature("unused_given", "80 * 0.75 = 60\n#### 60", question) == 0
    assert feature("foreign", "80 * 0.75 = 60\n#### 60", question) == 0


def test_a_number_from_nowhere_is_foreign() -> None:
    assert feature("foreign", "6 * 17 = 102\n#### 102") == pytest.approx(1 / 3)
    assert feature("foreign", GOOD) == 0


def test_a_result_that_nothing_uses_dangles() -> None:
    assert feature("dangling", "6 * 15 = 90\n15 + 70 = 85\n70 - 6 = 64\n#### 64") == pytest.approx(2 / 3)
    assert feature("dangling", GOOD) == 0


def test_a_difference_used_the_wrong_way_round_is_noticed() -> None:
    question = "Ada has 12 stamps. Ben has 3 fewer than Ada. How many has Ben?"
    assert feature("against", "12 + 3 = 15\n#### 15", question) == 0.5
    assert feature("against", "12 - 3 = 9\n#### 9", question) == 0


def test_a_half_that_no_sum_takes_is_unheeded() -> None:
    question = "Ada has 12 stamps and gives half of them away. How many are left?"
    assert feature("unheeded", "12 - 1 = 11\n#### 11", question) == 0.5
    assert feature("unheeded", "12 / 2 = 6\n#### 6", question) == 0


@pytest.mark.parametrize("answer", ["", "####", "<<", "= = =", "4 * = 3", "#### -", "(((1+2 = 3", "1 + 1 = -", "(" * 300])
def test_any_text_has_its_features(answer: str) -> None:
    assert len(measure(QUESTION, answer)) == len(FEATURES)
    assert len(measure(answer, GOOD)) == len(FEATURES)
