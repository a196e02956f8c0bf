"""Words, numbers, negations and names of a text."""

import pytest

from kitbash_ray.knowledge.text import normalize, opposites, question_kind, read, stands_alone, stem, tokens


@pytest.mark.parametrize(
    ("asked", "same_as"),
    [
        ("What is ATP?", "what is atp"),
        ("  what   is\tATP ", "what is atp"),
        ("Ｗｈａｔ　ｉｓ　ＡＴＰ？", "what is atp"),
        ("What’s a ﬁeld?", "what's a field"),
        ("'What' is \"ATP\"!", "what is atp"),
        ("1,000,000 years", "1000000 years"),
        ("STRASSE", "straße"),
    ],
)
def test_case_punctuation_spacing_and_width_do_not_make_another_question(asked: str, same_as: str) -> None:
    assert normalize(asked) == normalize(same_as)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++", "C"),
        ("C#", "C"),
        ("-5 degrees", "5 degrees"),
        ("3.5 km", "35 km"),
        ("5 %", "5"),
        ("1/2 cup", "12 cup"),
        ("10 - 5", "10 5"),
        ("What does := do?", "What does = do?"),
        ("What does // do?", "What does % do?"),
        ("What does | do?", "What does || do?"),
        ("What does ∀ mean?", "What does ∃ mean?"),
        ("Is 2^11 prime?", "Is 2 11 prime?"),
        ("HEAD~1", "HEAD 1"),
        ("What is $?", "What is $#?"),
    ],
)
def test_signs_that_carry_meaning_make_another_question(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)


@pytest.mark.parametrize(
    "text", ["What is C++?", "U.S.A.", "a/b 'c' -5 3.5%", "x - y", "½ café", "what is $? or `:=`?", "?!", "", "🦠 why"]
)
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t panic, C++ 3.5", ["don't", "panic", "c++", "3.5"]),
        ("carbon-14", ["carbon", "14"]),
        ("1,000 men", ["1,000", "men"]),
        ("🦠🦠 ... ?", []),
    ],
)
def test_tokens_are_lower_case_words_and_numbers(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("carbon-14", {"14"}),
        ("1,000 and 1000", {"1000"}),
        ("3.50 or 3.5", {"3.5"}),
        ("007", {"7"}),
        ("0", {"0"}),
        ("three of fifty", {"3", "50"}),
        ("one thing", set()),
        ("no number", set()),
    ],
)
def test_numbers_are_read_in_one_form(text: str, numbers: set[str]) -> None:
    assert read(text).numbers == numbers


def test_content_is_stems_without_stop_words_numbers_and_negations() -> None:
    assert read("What are the 3 cells that do not divide?").content == (stem("cells"), stem("divide"))


@pytest.mark.parametrize(("text", "negated"), [("it is not so", True), ("It isn’t", True), ("knot", False), ("never", True)])
def test_negations_are_seen(text: str, negated: bool) -> None:
    assert read(text).negated is negated


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Who was Marie Curie?", {"mari", "curi"}),
        ("What is ATP?", {"atp"}),
        ("is C3H8 a gas", {"c3h8"}),
        ("the USS Enterprise", {"uss", "enterpris"}),
        ("in 1990", set()),
        ("Water boils. Ice melts.", set()),
        ("where is paris", set()),
    ],
)
def test_names_are_capitals_inside_a_sentence_acronyms_and_letters_with_digits(text: str, names: set[str]) -> None:
    assert read(text).names == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("what is carbon-14", {"carbon-14"}),
        ("Covid-19 spreads", {"covid-19"}),
        ("in 1990-1995", set()),
        ("what is 東京", set()),
    ],
)
def test_letters_with_digits_are_names_and_digits_alone_are_not(text: str, names: set[str]) -> None:
    assert read(text).names == names


@pytest.mark.parametrize(
    "text",
    [
        "why?",
        "Why",
        "and in yeast?",
        "what about plants",
        "what is it made of?",
        "How so?",
        "ok",
        "the of",
        "???",
        "",
        "who wrote that",
    ],
)
def test_a_question_that_leans_on_others_does_not_stand_alone(text: str) -> None:
    assert not stands_alone(text)


@pytest.mark.parametrize("text", ["What is ATP?", "Why is the sky blue?", "who wrote Hamlet", "42", "andes height", "Soil pH"])
def test_a_whole_question_stands_alone(text: str) -> None:
    assert stands_alone(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("How many legs has a spider?", "count"),
        ("how far is the moon", "count"),
        ("When did Rome fall?", "when"),
        ("In what year did Rome fall?", "when"),
        ("Who wrote Hamlet?", "who"),
        ("Where is Oslo?", "where"),
        ("Why is the sky blue?", "why"),
        ("What causes tides?", "why"),
        ("Is water wet?", "yesno"),
        ("What is ATP?", "what"),
        ("whole numbers", "what"),
        ("", "what"),
    ],
)
def test_the_kind_of_a_question_is_read_from_its_words(text: str, kind: str) -> None:
    assert question_kind(text) == kind


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("increase", "decrease"),
        ("increases", "reduces"),
        ("anode", "cathode"),
        ("visible", "invisible"),
        ("stable", "unstable"),
    ],
)
def test_opposites_are_found_both_ways(one: str, other: str) -> None:
    assert stem(other) in opposites(stem(one))
    assert stem(one) in opposites(stem(other))


def test_a_word_is_not_its_own_opposite() -> None:
    assert stem("hot") not in opposites(stem("hot"))


def test_mathematical_signs_are_checked_like_numbers() -> None:
    assert read("What does ∀x mean?").numbers == {"∀"}
    assert read("√2 is 1.41421").numbers == {"√", "2", "1.41421"}
