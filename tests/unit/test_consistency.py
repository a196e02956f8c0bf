"""Doubts about facts: planted contradictions, repetitions and unanswered asks are found, good neighbours are not."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.consistency import doubts
from kitbash_ray.knowledge.library import Library

PROJECT = Path(__file__).parents[2]


def fact(name: str, text: str, *asks: str, **fields: object) -> Fact:
    cartridge = name.partition(":")[0]
    return Fact(name, cartridge, "general", text, asks or (f"what is {name}",), "Book", **fields)  # type: ignore[arg-type]


#: A library in which the words of the facts under test are rare.
REST = [
    fact("rest:boat", "The ferry to the island leaves at noon.", "When was the ferry founded in the year of the harbour?"),
    fact("rest:tea", "Green tea is brewed with water of about 80 °C.", "How hot is the water for green tea?"),
    fact("rest:ice", "Ice melts at 0 °C at normal pressure.", "At what temperature does ice melt?"),
    fact("rest:oven", "Bread is baked at 230 °C.", "How hot is an oven for bread?"),
    *(fact(f"rest:{n}", f"Entry {word} of the ledger concerns {word} barrels.") for n, word in enumerate(
        "ash birch cedar elm fir hazel larch maple oak pine rowan spruce willow yew alder aspen".split())),
]  # fmt: skip
BOIL = fact("a:boil", "Water boils at 100 °C at a pressure of 1 atm.", "At what temperature does water boil?")


def messages(*facts: Fact) -> list[str]:
    ours = {one.id for one in facts}
    found = doubts([*REST, *facts])
    return [doubt.message for doubt in found if doubt.fact.id in ours or (doubt.other and doubt.other.id in ours)]


def test_two_values_for_the_same_thing_are_found_by_their_words() -> None:
    (message,) = messages(BOIL, fact("b:boil", "Water boils at 90 °C at a pressure of 1 atm."))
    assert message == "may contradict 'b:boil': it says 100 °C here and 90 °C there."


def test_two_values_for_the_same_thing_are_found_by_their_asks() -> None:
    (message,) = messages(BOIL, fact("b:steam", "Steam forms from 90 °C up.", "At which temperature does water boil?"))
    assert "may contradict 'b:steam'" in message
    assert "100 °C here and 90 °C there" in message


def test_a_statement_and_its_negation_are_found() -> None:
    one = fact("a:glass", "Window glass flows slowly at room temperature.")
    other = fact("b:glass", "Window glass does not flow at room temperature.")
    (message,) = messages(one, other)
    assert message == "may contradict 'b:glass': one of them has a negation."


def test_a_repeated_fact_is_found() -> None:
    (message,) = messages(BOIL, fact("b:boil", "At a pressure of 1 atm, water boils at 100 °C."))
    assert message == "says nearly the same as 'b:boil'."


def test_an_ask_that_two_facts_claim_is_found_across_cartridges() -> None:
    one = fact("a:port", "The broker listens on a port of its own.", "What does the broker listen on?")
    other = fact("b:port", "A queue has consumers that wait.", "What does the broker listen on?")
    (message,) = messages(one, other)
    assert "'b:port' claims" in message


@pytest.mark.parametrize(
    ("ask", "text", "lacks"),
    [
        ("How many legs does a spider have?", "Spiders walk on several legs.", "number"),
        ("When was the lamp invented?", "The lamp was invented in a workshop.", "time"),
        ("Who invented the lamp?", "The lamp was invented in a workshop.", "name"),
    ],
)
def test_an_ask_whose_answer_is_missing_is_found(ask: str, text: str, lacks: str) -> None:
    assert messages(fact("a:one", text, ask)) == [f"has no {lacks}, which {ask!r} asks for."]


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        ("How many legs does a spider have?", "A spider has eight legs."),
        ("How many moons has Venus?", "Venus has no moon."),
        ("How do I see how many cores there are?", "nproc prints the cores."),
        ("When does water boil?", "Water boils when its vapour pressure reaches that of the air."),
        ("When was it built?", "The tower was built in 1889."),
        ("Who built the tower?", "The tower was built by the company of Gustave Eiffel."),
    ],
)
def test_an_ask_that_is_answered_is_left_alone(ask: str, text: str) -> None:
    assert messages(fact("a:one", text, ask)) == []


@pytest.mark.parametrize(
    "other",
    [
        fact("b:freeze", "Water freezes at 0 °C at a pressure of 1 atm.", "At what temperature does water freeze?"),
        fact("b:ethanol", "Ethanol boils at 78.4 °C at a pressure of 1 atm.", "At what temperature does ethanol boil?"),
        fact("b:old", "Water boils at 90 °C at a pressure of 1 atm.", valid_until=date(1900, 1, 1)),
    ],
    ids=lambda other: other.id,
)
def test_neighbours_that_are_both_right_are_left_alone(other: Fact) -> None:
    now = fact("a:boil", BOIL.text, *BOIL.asks, valid_from=date(1990, 1, 1))
    assert messages(now, other) == []


def test_the_cartridges_of_the_project_leave_no_doubt() -> None:
    contents = Library(PROJECT / "cartridges").load()
    assert contents.problems == ()
    assert [f"{doubt.fact.id} {doubt.message}" for doubt in doubts(contents.facts)] == []
