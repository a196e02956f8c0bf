"""Grains proposed from imported passages: definite sentences only, and nothing is ever published."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import FactEntry, load_cartridge
from kitbash_ray.knowledge.importers import import_path
from kitbash_ray.knowledge.proposals import PROPOSALS, Proposal, propose_grains, write_proposals


def proposals(folder: Path, text: str, most: int = 50) -> list[Proposal]:
    source = folder / "notes.md"
    source.write_text(text)
    return propose_grains(import_path(source, "notes", folder / "cartridges").folder, most)


@pytest.mark.parametrize(
    ("sentence", "ask"),
    [
        ("A manifold is a pipe that splits one flow into several.", "What is a manifold?"),
        ("MTU stands for maximum transmission unit.", "What does MTU stand for?"),
        ("The boiler takes 12 litres of glycol.", "What does the boiler take?"),
        ("The broker listens on port 1883 by default.", "What does the broker listen on?"),
        ("The pump in the cellar draws 450 watts.", "What does the pump in the cellar draw?"),
        ("The well reaches about 40 metres down.", "What does the well reach?"),
    ],
)
def test_a_definite_sentence_is_proposed_with_ways_to_ask(tmp_path: Path, sentence: str, ask: str) -> None:
    (found,) = proposals(tmp_path, f"# Heating\n\nSome words before it. {sentence} And some after it.\n")
    assert found.fact == sentence
    assert found.asks[0] == ask
    assert len(found.asks) >= 2
    assert found.source == "notes.md, Heating"


@pytest.mark.parametrize(
    ("sentence", "ask"),
    [
        ("The cistern holds 3,200 litres.", "How many litres does the cistern hold?"),
        ("The fence has 40 posts in the garden.", "How many posts does the fence have?"),
    ],
)
def test_a_number_of_things_is_asked_for_as_people_do(tmp_path: Path, sentence: str, ask: str) -> None:
    (found,) = proposals(tmp_path, sentence)
    assert ask in found.asks


@pytest.mark.parametrize(
    "sentence",
    [
        "It is a pipe that splits one flow into several.",
        "This pump is a device that draws 40 W.",
        "You have to close 2 valves before that.",
        "When the pump is off, the pressure is 1 bar.",
        "The house is nice in the morning.",
        "The pump is a device",
        f"A pump is a {'very ' * 80}long thing.",
        "Short is a 1.",
    ],
)
def test_what_leans_on_its_surroundings_or_says_nothing_definite_is_not_proposed(tmp_path: Path, sentence: str) -> None:
    assert proposals(tmp_path, sentence) == []


def test_the_most_definite_come_first_and_no_more_than_wanted(tmp_path: Path) -> None:
    text = "The fence has 40 posts in the garden.\n\nA gabion is a cage of wire filled with stones.\n\nThe shed has 2 doors in its front."
    assert [one.fact[:8] for one in proposals(tmp_path, text, most=2)] == ["A gabion", "The fenc"]


def test_proposals_have_the_form_of_facts_and_are_no_part_of_the_cartridge(tmp_path: Path) -> None:
    found = proposals(tmp_path, "A gabion is a cage of wire filled with stones.")
    folder = tmp_path / "cartridges" / "notes"
    write_proposals(folder, found)
    (entry,) = yaml.safe_load((folder / PROPOSALS).read_text())
    assert FactEntry.model_validate(entry).fact == found[0].fact
    assert all(not fact.asks for fact in load_cartridge(folder).facts)
    # Once accepted, the same sentence is not proposed again
    (folder / "facts.yaml").write_text(yaml.safe_dump([entry]))
    assert propose_grains(folder, 10) == []


def test_an_accepted_fact_survives_the_next_import(tmp_path: Path) -> None:
    found = proposals(tmp_path, "A gabion is a cage of wire filled with stones.")
    folder = tmp_path / "cartridges" / "notes"
    write_proposals(folder, found)
    (folder / PROPOSALS).rename(folder / "facts.yaml")
    (tmp_path / "notes.md").write_text("Something else.")
    import_path(tmp_path / "notes.md", "notes", tmp_path / "cartridges")
    assert [fact.text for fact in load_cartridge(folder).facts] == [found[0].fact, "Something else."]


def test_a_cartridge_that_was_not_imported_has_nothing_to_propose_from(tmp_path: Path) -> None:
    with pytest.raises(CartridgeError, match="no imported cartridge"):
        propose_grains(tmp_path / "nothing", 5)
