"""The numbers that a confidence is made of."""

import pytest

from kitbash_ray.knowledge.evidence import FEATURES, LEXICAL_WEIGHT, Candidate, Comparison


def always_rare(_: str) -> float:
    return 1.0


def features_of(question: str, text: str, *, cosine: float = 0.8, others: tuple[Candidate, ...] = ()) -> dict[str, float]:
    """The first candidate's features by name; it is asked for with its own text."""
    candidates = [Candidate(text, (), text, cosine, (cosine,)), *others]
    return dict(zip(FEATURES, Comparison(question, candidates, always_rare).features(0), strict=True))


def other(text: str, cosine: float) -> Candidate:
    return Candidate(text, (), text, cosine, (cosine,))


@pytest.mark.parametrize("at", [0, 1])
def test_any_candidate_can_be_measured(at: int) -> None:
    beside = Comparison("What is ATP?", [other("ATP is energy.", 0.9), other("DNA is a code.", 0.2)], always_rare)
    row = beside.features(at)
    assert len(row) == len(FEATURES)
    assert row[FEATURES.index("cosine")] == (0.9, 0.2)[at]


@pytest.mark.parametrize(
    ("feature", "question", "near_miss", "right"),
    [
        (
            "numbers_differ",
            "half-life of carbon-11",
            "Carbon-14 has a half-life of 5730 y.",
            "The half-life of carbon-11 is 20 min.",
        ),
        ("negation_differs", "what is not a metal", "Iron is a metal.", "Sulfur is not a metal."),
        ("names_differ", "population of Oslo", "The population of Bergen is large.", "The population of Oslo is large."),
        ("opposite", "what increases heart rate", "Rest decreases heart rate.", "Effort increases heart rate."),
        ("wrong_kind", "How many legs has a spider?", "A spider has legs.", "A spider has eight legs."),
        ("wrong_kind", "When did Rome fall?", "Rome fell to the Goths.", "Rome fell in 1453."),
        ("wrong_kind", "Who discovered radium?", "It was discovered in a shed.", "Radium was found by Marie Curie."),
        ("unexplained", "Why is the sky blue?", "The sky is blue.", "The sky is blue because blue scatters most."),
        ("uncovered", "melting point of tungsten", "Iron has a melting point.", "The melting point of tungsten is high."),
    ],
)
def test_a_near_miss_is_told_from_the_right_fact(feature: str, question: str, near_miss: str, right: str) -> None:
    assert features_of(question, near_miss)[feature] == 1.0
    assert features_of(question, right)[feature] == 0.0


def test_coverage_is_the_share_of_the_questions_words_that_the_fact_has() -> None:
    assert features_of("tungsten melting point", "Iron has a melting point.")["coverage"] == pytest.approx(2 / 3)


def test_a_fact_is_covered_by_its_askings_too() -> None:
    candidate = Candidate("It stores energy.", ("what does adenosine triphosphate do",), "It stores energy.", 0.5, (0.5, 0.4))
    row = dict(zip(FEATURES, Comparison("adenosine triphosphate", [candidate], always_rare).features(0), strict=True))
    assert row["coverage"] == 1.0


def test_the_lead_is_the_distance_to_the_best_other_fact() -> None:
    rivals = (other("DNA is a code.", 0.3), other("RNA is a copy.", 0.6))
    assert features_of("What is ATP?", "ATP is energy.", cosine=0.8, others=rivals)["lead"] == pytest.approx(0.2)


def test_the_lead_of_the_only_fact_is_its_cosine() -> None:
    assert features_of("What is ATP?", "ATP is energy.", cosine=0.8)["lead"] == 0.8


def test_all_words_but_one_shows_as_one_word_off() -> None:
    near = features_of("boiling point of liquid nitrogen", "The boiling point of liquid helium is 4 K.")
    far = features_of("boiling point of liquid nitrogen", "Bread needs yeast.")
    assert near["one_word_off"] > far["one_word_off"] == 0.0


def test_what_is_against_a_fact_counts_only_as_far_as_the_question_is_covered() -> None:
    near = features_of("half-life of carbon-11", "Carbon-14 has a half-life of 5730 years.")
    far = features_of("half-life of carbon-11", "14 yeasts.")
    assert near["contradicted"] == 1.0
    assert far["contradicted"] == 0.0


@pytest.mark.parametrize("question", ["", "???", "the of and", "🦠", "7", "x" * 8000])
def test_any_question_gives_numbers_between_minus_one_and_one(question: str) -> None:
    row = features_of(question, "ATP is energy.", others=(other("DNA is a code.", 0.9),))
    assert all(-1.0 <= value <= 1.0 for value in row.values())


def test_shared_rare_words_decide_between_equal_cosines() -> None:
    candidates = [other("Iron melts.", 0.5), other("Tungsten melts.", 0.5)]
    beside = Comparison("melting point of tungsten", candidates, always_rare)
    assert beside.best() == 1
    assert beside.features(1)[FEATURES.index("hybrid_lead")] == pytest.approx(LEXICAL_WEIGHT)


def test_a_clearly_nearer_fact_is_the_best_without_any_shared_word() -> None:
    candidates = [other("Wolfram liquefies late.", 0.9), other("Tungsten melts.", 0.4)]
    assert Comparison("melting point of tungsten", candidates, always_rare).best() == 0


def test_a_common_word_weighs_less_than_a_rare_one() -> None:
    def rarity(stem: str) -> float:
        return 0.1 if stem == "cell" else 1.0

    assert Comparison("cell nucleus", [other("A cell.", 0.5), other("A nucleus.", 0.5)], rarity).best() == 1


@pytest.mark.parametrize("question", ["How do plants make sugar?", "What stores energy in cells?"])
def test_a_question_with_one_rare_word_exchanged_is_swapped_and_the_asking_itself_is_not(question: str) -> None:
    candidate = Candidate("It is so.", (question,), question, 0.9, (0.5, 0.9))
    other_question = question.replace("plants", "fungi").replace("energy", "water")
    swapped = Comparison(other_question, [candidate], always_rare).features(0)
    same = Comparison(question, [candidate], always_rare).features(0)
    assert swapped[FEATURES.index("swapped")] == 1.0
    assert same[FEATURES.index("swapped")] == 0.0
    assert same[FEATURES.index("asked")] == 1.0
