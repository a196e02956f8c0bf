"""Layer 2's table: what a real LanceDB finds, and for whom."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest

from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.grain_index import Scope
from kitbash_ray.knowledge.retrieval import Found, Retrieval, build_table
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.testing import HashEmbedder

DAY = timedelta(days=1)
ATP = Fact("bio:atp", "bio", "general", "ATP carries energy.", ("what is ATP", "what does ATP do"), "a book", section="2")
DNA = Fact("bio:dna", "bio", "general", "DNA stores heredity.", ("what is DNA",), None)
SPICE = Fact("dune:spice", "dune", "fiction", "Spice folds space.", (), None)
QUOTED = Fact("o'hara:x", "o'hara", "general", "Tara is a plantation.", (), None)
OLD = Fact("bio:old", "bio", "general", "ATP was the leader.", (), None, valid_until=date.today() - DAY)
NEXT = Fact("bio:next", "bio", "general", "ATP will be the leader.", (), None, valid_from=date.today() + DAY)
LAST_DAY = Fact("bio:last", "bio", "general", "ATP ends today.", (), None, valid_from=date.today(), valid_until=date.today())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    return VectorStore(HashEmbedder(), tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="module")
def table(store: VectorStore, tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    folder = tmp_path_factory.mktemp("tables") / "table"
    build_table([ATP, DNA, SPICE, QUOTED, OLD, NEXT, LAST_DAY], store, folder)
    return Retrieval(folder)


def search(table: Retrieval, question: str, scope: Scope | None = None, limit: int = 8) -> list[Found]:
    return table.search(question, HashEmbedder().embed([question])[0], scope or Scope(), limit)


def ids(found: list[Found]) -> set[str]:
    return {item.grain.source.fact_id for item in found}


def test_a_fact_is_found_once_by_its_nearest_text_best_first(table: Retrieval) -> None:
    found = search(table, "what does ATP do")
    assert found[0].grain.source.fact_id == "bio:atp"
    assert found[0].nearest == "what does ATP do"
    assert found[0].cosine == pytest.approx(1, abs=1e-3)
    assert len(ids(found)) == len(found)
    assert [item.order for item in found] == sorted((item.order for item in found), reverse=True)


def test_a_fact_comes_back_with_everything_that_was_known_of_it(table: Retrieval) -> None:
    grain = search(table, "what is ATP")[0].grain
    assert (grain.source.text, grain.source.reference, grain.source.section, grain.asks) == (ATP.text, "a book", "2", ATP.asks)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), {"bio:atp", "bio:dna", "bio:last", "o'hara:x"}),
        (Scope(("fiction",)), {"dune:spice"}),
        (Scope(("general",), ("o'hara",)), {"o'hara:x"}),
        (Scope(("general",), ("x' OR '1'='1",)), set()),
        (Scope(("experiment",)), set()),
    ],
)
def test_only_what_the_scope_and_the_day_allow_is_found(scope: Scope, expected: set[str], table: Retrieval) -> None:
    assert ids(search(table, "ATP", scope)) == expected


def test_no_more_facts_than_the_limit(table: Retrieval) -> None:
    assert len(search(table, "ATP", limit=2)) == 2


@pytest.mark.parametrize(
    "question",
    ["", "???", "🦠", "the of and", '"ATP" AND (title:x', "a'b; DROP TABLE texts; --", "ATP " * 2000, "\x00", "*", "東京"],
)
def test_no_question_breaks_the_search(question: str, table: Retrieval) -> None:
    assert ids(search(table, question)) <= {"bio:atp", "bio:dna", "bio:last", "o'hara:x"}


def test_a_rare_word_finds_its_fact_among_many_whose_vectors_are_nearer(store: VectorStore, tmp_path: Path) -> None:
    facts = [Fact(f"a:{n}", "a", "general", f"what is the meaning of the thing {n}", (), None) for n in range(200)]
    rare = Fact("a:rare", "a", "general", "Quokkas of Rottnest smile often at tourists with cameras.", (), None)
    build_table([*facts, rare], store, tmp_path / "table")
    assert "a:rare" in ids(search(Retrieval(tmp_path / "table"), "what is the meaning of the quokkas", limit=100))


def test_an_empty_table_finds_nothing(store: VectorStore, tmp_path: Path) -> None:
    build_table([], store, tmp_path / "table")
    assert search(Retrieval(tmp_path / "table"), "what is ATP") == []


def test_building_what_is_there_changes_nothing(store: VectorStore, tmp_path: Path) -> None:
    build_table([ATP], store, tmp_path / "table")
    build_table([ATP], store, tmp_path / "table")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    assert ids(search(Retrieval(tmp_path / "table"), "ATP")) == {"bio:atp"}
