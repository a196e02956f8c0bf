"""Cartridges that come, change, break and go while the cluster answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitbash_ray import Kitbash

from .harness import ATP, UNKNOWN, Cluster, asking, eventually, fact_text, write_cartridge

#: The cartridges are looked at every second; the rest is for indexing on a busy machine.
SWAP_S = 15.0
QUESTION = "What colour is the gate of Brumwick?"
NAME = "brumwick"


def gate(colour: str) -> dict[str, object]:
    return {
        "id": "gate",
        "fact": f"The gate of Brumwick is {colour}.",
        "asks": [QUESTION, "Which colour does Brumwick's gate have?"],
        "source": "a test",
        "level": "empirical",
    }


@pytest.fixture
def folder(cluster: Cluster, client: Kitbash) -> Iterator[Path]:
    """Where the cartridge of these tests may be; it is gone afterwards."""
    path = cluster.cartridges / NAME
    yield path
    shutil.rmtree(path, ignore_errors=True)
    eventually(lambda: not _from_it(client) and _in_step(cluster), SWAP_S, "the cartridge is forgotten")


def _from_it(client: Kitbash) -> bool:
    return any(source.cartridge == NAME for source in client.ask(QUESTION).sources)


def _in_step(cluster: Cluster) -> bool:
    layers = cluster.layers()
    return bool(layers["grain"]["content"] == layers["cartridge"]["content"]) and not layers["grain"]["reason"]


def _retrieved(client: Kitbash) -> list[str]:
    """The texts that layer 2 finds for the question, which layer 0 is kept from answering."""
    answer = client.ask(QUESTION, max_error=0.0001)
    results = [event.result for event in client.events(answer.query_id) if event.result and event.layer == "cartridge"]
    return [source.text for result in results for source in result.sources]


def test_a_new_cartridge_answers_within_seconds_and_no_question_fails_meanwhile(
    cluster: Cluster, client: Kitbash, folder: Path
) -> None:
    assert not _from_it(client)
    with asking(cluster, "What is ATP?") as known, asking(cluster, UNKNOWN) as unknown:
        write_cartridge(cluster.cartridges, NAME, gate("green"))
        answer = eventually(lambda: (a := client.ask(QUESTION)).layer == "grain" and a, SWAP_S, "the new fact answers")
        eventually(lambda: "The gate of Brumwick is green." in _retrieved(client), SWAP_S, "layer 2 finds it too")
    assert answer
    assert answer.answer == "The gate of Brumwick is green."
    assert answer.sources[0].fact_id == f"{NAME}:gate"
    assert known.errors == unknown.errors == []
    assert {answer.answer for answer in known.answers} == {fact_text(ATP)}
    assert {answer.status for answer in unknown.answers} == {"answered"}


def test_an_edited_fact_replaces_the_old_one(cluster: Cluster, client: Kitbash, folder: Path) -> None:
    write_cartridge(cluster.cartridges, NAME, gate("green"))
    eventually(lambda: client.ask(QUESTION).answer == "The gate of Brumwick is green.", SWAP_S, "the first fact answers")
    with asking(cluster, QUESTION) as asked:
        write_cartridge(cluster.cartridges, NAME, gate("black"))
        eventually(lambda: client.ask(QUESTION).answer == "The gate of Brumwick is black.", SWAP_S, "the second fact answers")
        eventually(lambda: _retrieved(client)[0] == "The gate of Brumwick is black.", SWAP_S, "layer 2 finds it too")
        seen = len(asked.answers)
        eventually(lambda: len(asked.answers) > seen + 2, 10, "it is asked again")
    said = [answer.answer for answer in asked.answers]
    assert asked.errors == []
    assert set(said) == {"The gate of Brumwick is green.", "The gate of Brumwick is black."}
    assert said == sorted(said, key=lambda text: "black" in (text or "")), "the old fact came back"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("facts.yaml", b"- id: gate\n  fact: [unclosed"),
        ("facts.yaml", b"\xff\xfe\x00"),
        ("facts.yaml", b"- id: gate\n  fact: ''\n"),
        ("cartridge.toml", b"name = "),
        ("cartridge.toml", b'name = "brumwick"\nversion = "1"\nfaction = "romance"\nlicence = "CC0"\ndescription = "x"\n'),
    ],
)
def test_a_broken_cartridge_leaves_the_others_answering_and_is_named(
    cluster: Cluster, client: Kitbash, folder: Path, file: str, content: bytes
) -> None:
    with asking(cluster, "What is ATP?") as asked:
        write_cartridge(cluster.cartridges, NAME, gate("green"))
        (folder / file).write_bytes(content)
        reason = eventually(lambda: cluster.layers()["grain"]["reason"], SWAP_S, "the problem is shown")
        assert client.ask("What does ray status print?").layer == "grain"
        assert client.ask("Who rules the moon of Zarquon?", factions=["fiction"]).layer == "grain"
    assert NAME in reason
    assert file in reason
    assert "Traceback" not in reason
    assert asked.errors == []
    assert {answer.answer for answer in asked.answers} == {fact_text(ATP)}
    status = cluster.command("status", COLUMNS="400")
    assert NAME in status.stdout


def test_a_mended_cartridge_answers_and_is_no_problem_any_more(cluster: Cluster, client: Kitbash, folder: Path) -> None:
    write_cartridge(cluster.cartridges, NAME, gate("green"))
    (folder / "facts.yaml").write_bytes(b"- [")
    eventually(lambda: cluster.layers()["grain"]["reason"], SWAP_S, "the problem is shown")
    write_cartridge(cluster.cartridges, NAME, gate("red"))
    eventually(lambda: client.ask(QUESTION).answer == "The gate of Brumwick is red.", SWAP_S, "the mended fact answers")
    eventually(lambda: not cluster.layers()["grain"]["reason"], SWAP_S, "the problem is gone")


def test_a_removed_cartridge_answers_no_longer(cluster: Cluster, client: Kitbash, folder: Path) -> None:
    write_cartridge(cluster.cartridges, NAME, gate("green"))
    eventually(lambda: client.ask(QUESTION).layer == "grain", SWAP_S, "the fact answers")
    with asking(cluster, "What is ATP?") as asked:
        shutil.rmtree(folder)
        eventually(lambda: not _from_it(client), SWAP_S, "layer 0 has forgotten it")
        eventually(lambda: "The gate of Brumwick is green." not in _retrieved(client), SWAP_S, "layer 2 has forgotten it")
    assert asked.errors == []
    assert {answer.answer for answer in asked.answers} == {fact_text(ATP)}


def test_a_library_that_is_away_for_a_while_costs_nothing(cluster: Cluster, client: Kitbash) -> None:
    away = cluster.cartridges.with_name("away")
    cluster.cartridges.rename(away)
    try:
        reason = eventually(lambda: cluster.layers()["grain"]["reason"], SWAP_S, "the problem is shown")
        assert str(cluster.cartridges) in reason
        assert client.ask("What is ATP?").answer == fact_text(ATP)
    finally:
        away.rename(cluster.cartridges)
    assert client.ask("What is ATP?").answer == fact_text(ATP)


def test_the_problem_of_a_library_that_is_back_is_shown_no_longer(cluster: Cluster) -> None:
    away = cluster.cartridges.with_name("away")
    cluster.cartridges.rename(away)
    try:
        eventually(lambda: cluster.layers()["grain"]["reason"], SWAP_S, "the problem is shown")
    finally:
        away.rename(cluster.cartridges)
    eventually(lambda: not cluster.layers()["grain"]["reason"], 6, "the problem is gone")
