"""Layer 0's index: what it finds, what it must not find, and that its arrays are only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.grain_index import (
    ASKS_READ,
    GRAIN_CHARS,
    HALFWAY,
    MANY_ROWS,
    SHORTLIST,
    GrainIndex,
    Scope,
    _codes,
    _halfway,
    _shortest,
    build_arrays,
    load_arrays,
    save_arrays,
)
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.testing import HashEmbedder

EVERYWHERE = Scope(("general", "fiction", "experiment"))
TODAY = date.today()

ATP = Fact("bio:atp", "bio", "general", "ATP carries energy.", ("what is ATP", "what does ATP do"), "a book", section="2")
DNA = Fact("bio:dna", "bio", "general", "DNA stores heredity.", ("what is DNA",), "a book")
MELANGE = Fact("dune:spice", "dune", "fiction", "Spice lets pilots fold space.", ("what is spice",), None)
SPICE = Fact("food:spice", "food", "general", "Spice flavours food.", ("what is spice",), None)


class Crafted:
    """An embedder whose vectors the test chooses."""

    def __init__(self, table: dict[str, npt.NDArray[np.float32]]) -> None:
        self.table = table
        self.model_id = "crafted"
        self.dimensions = len(next(iter(table.values())))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([self.table[text] for text in texts], np.float32)


def arrays_of(facts: Sequence[Fact], folder: Path, embedder: Any = None) -> dict[str, npt.NDArray[Any]]:
    return build_arrays(facts, VectorStore(embedder or HashEmbedder(), folder))


def index_of(facts: Sequence[Fact], folder: Path) -> GrainIndex:
    return GrainIndex(arrays_of(facts, folder))


def unit(vector: npt.ArrayLike) -> npt.NDArray[np.float32]:
    array = np.asarray(vector, np.float64)
    return (array / np.linalg.norm(array)).astype(np.float32)


@pytest.mark.parametrize("asked", ["what is ATP", "What is ATP?", " WHAT  is atp!", "ATP carries energy."])
def test_an_asking_is_found_whatever_its_case_and_punctuation(asked: str, tmp_path: Path) -> None:
    found = index_of([DNA, ATP], tmp_path).exact(asked, EVERYWHERE)
    assert found is not None
    assert found.source.fact_id == "bio:atp"


def test_a_grain_comes_back_with_everything_that_was_known_of_it(tmp_path: Path) -> None:
    found = index_of([ATP], tmp_path).exact("what is ATP", EVERYWHERE)
    assert found is not None
    assert (found.source.cartridge, found.source.text, found.source.reference, found.source.section) == (
        "bio",
        "ATP carries energy.",
        "a book",
        "2",
    )
    assert found.asks == ATP.asks


@pytest.mark.parametrize("asked", ["what is ATPase", "", "???", "what is", "🦠", "'; DROP TABLE facts; --", "x" * 8000])
def test_what_nobody_wrote_down_is_no_exact_match(asked: str, tmp_path: Path) -> None:
    assert index_of([ATP, DNA], tmp_path).exact(asked, EVERYWHERE) is None


def test_text_beyond_ascii_survives_the_arrays(tmp_path: Path) -> None:
    fact = Fact("bio:μ", "bio", "general", "Ein µ ist 10⁻⁶ – 🦠.", ("was ist ein µ",), "Bücher")
    found = index_of([fact], tmp_path).exact("Was ist ein μ?", EVERYWHERE)
    assert found is not None
    assert found.source.text == fact.text


@pytest.mark.parametrize(
    ("scope", "fact_id"),
    [
        (Scope(), "food:spice"),
        (Scope(("fiction",)), "dune:spice"),
        (Scope(("general", "fiction"), ("dune",)), "dune:spice"),
        (Scope(("general",), ("dune",)), None),
        (Scope(("experiment",)), None),
        (Scope(("general",), ("nowhere",)), None),
        (Scope(("general",), ("nowhere", "food")), "food:spice"),
    ],
)
def test_only_the_scope_answers_exactly_and_by_meaning(scope: Scope, fact_id: str | None, tmp_path: Path) -> None:
    index = index_of([MELANGE, SPICE], tmp_path)
    exact = index.exact("what is spice", scope)
    nearest = index.nearest(HashEmbedder().embed(["what is spice"])[0], scope)
    assert (exact and exact.source.fact_id) == fact_id
    assert [hit.grain.source.fact_id for hit in nearest] == ([fact_id] if fact_id else [])


@pytest.mark.parametrize(
    ("begins", "ends", "valid"),
    [
        (None, None, True),
        (0, 0, True),  # both dates are inclusive
        (-5, None, True),
        (None, 5, True),
        (1, None, False),
        (None, -1, False),
        (-9, -1, False),
    ],
)
def test_a_fact_answers_from_its_first_day_to_its_last(
    begins: int | None, ends: int | None, valid: bool, tmp_path: Path
) -> None:
    def day(offset: int | None) -> date | None:
        return None if offset is None else TODAY + timedelta(days=offset)

    index = index_of([replace(ATP, valid_from=day(begins), valid_until=day(ends))], tmp_path)
    assert (index.exact("what is ATP", EVERYWHERE) is not None) is valid
    assert bool(index.nearest(HashEmbedder().embed(["what is ATP"])[0], EVERYWHERE)) is valid


def test_the_successor_of_a_fact_that_ended_answers_in_its_place(tmp_path: Path) -> None:
    old = Fact("a:old", "a", "general", "Ada is head.", ("who is head",), None, valid_until=TODAY - timedelta(days=1))
    new = Fact("a:new", "a", "general", "Bob is head.", ("who is head",), None, valid_from=TODAY)
    found = index_of([old, new], tmp_path).exact("who is head", EVERYWHERE)
    assert found is not None
    assert found.source.fact_id == "a:new"


def test_the_nearest_grains_come_best_first_and_each_once(tmp_path: Path) -> None:
    embedder = Crafted(
        {
            "ATP carries energy.": unit([1, 0, 0, 0.5]),
            "what is ATP": unit([1, 0.1, 0, 0]),
            "what does ATP do": unit([1, 0.2, 0, 0]),
            "DNA stores heredity.": unit([0.5, 1, 0, 0]),
            "what is DNA": unit([0, 1, 0, 0]),
        }
    )
    index = GrainIndex(arrays_of([DNA, ATP], tmp_path, embedder))
    found = index.nearest(unit([1, 0, 0, 0]), EVERYWHERE)
    assert [(hit.grain.source.fact_id, hit.nearest) for hit in found] == [
        ("bio:atp", "what is ATP"),
        ("bio:dna", "DNA stores heredity."),
    ]
    assert found[0].cosine == pytest.approx(1 / np.sqrt(1.01), abs=1e-3)
    assert found[1].cosines == pytest.approx((0.447, 0.0), abs=1e-3)


def test_no_more_grains_than_the_limit(tmp_path: Path) -> None:
    facts = [Fact(f"a:{n}", "a", "general", f"fact {n}", (), None) for n in range(20)]
    found = index_of(facts, tmp_path).nearest(HashEmbedder().embed(["fact"])[0], EVERYWHERE, limit=3)
    assert len(found) == 3


@pytest.mark.parametrize("dimensions", [64, 100, 384])
def test_the_true_neighbour_survives_the_shortlist_of_many_rows(dimensions: int, tmp_path: Path) -> None:
    # Given ten times as many rows as the shortlist keeps, in clouds that lie off the origin
    random = np.random.default_rng(dimensions)
    rows = random.standard_normal((SHORTLIST * 10, dimensions)) + 1.0
    table = {f"fact {n}": unit(row) for n, row in enumerate(rows)}
    facts = [Fact(f"a:{n}", "a", "general", text, (), None) for n, text in enumerate(table)]
    index = GrainIndex(arrays_of(facts, tmp_path, Crafted(table)))
    for number in range(0, len(facts), 97):
        # When something close to one of them is looked up
        asked = unit(table[f"fact {number}"] + 0.2 * unit(random.standard_normal(dimensions)))
        best = max(table, key=lambda text: float(table[text] @ asked))
        # Then the exact cosine's best is the first that is found
        assert index.nearest(asked, EVERYWHERE, limit=1)[0].nearest == best


def test_a_scope_smaller_than_the_shortlist_is_found_among_many_strangers(tmp_path: Path) -> None:
    strangers = [Fact(f"a:{n}", "a", "general", f"what is ATP {n}", (), None) for n in range(SHORTLIST * 2)]
    index = index_of([*strangers, MELANGE], tmp_path)
    found = index.nearest(HashEmbedder().embed(["what is ATP"])[0], Scope(("fiction",)))
    assert [hit.grain.source.fact_id for hit in found] == ["dune:spice"]


@pytest.mark.parametrize("rows", [257, 1023, 1024, 1025, 150_001])
@pytest.mark.parametrize("highest", [3, 400])
def test_the_limit_of_the_shortlist_is_what_sorting_all_rows_gives(rows: int, highest: int) -> None:
    distance = np.random.default_rng(rows).integers(0, highest, rows).astype(np.uint16)
    assert _shortest(distance, SHORTLIST) == np.sort(distance)[SHORTLIST]


def test_half_of_the_bits_hand_on_the_true_neighbours_and_nothing_out_of_scope() -> None:
    # Given more rows than are read whole, of which every third is out of scope
    random = np.random.default_rng(3)
    vectors = random.standard_normal((MANY_ROWS * 2, 384), np.float32)
    codes, mask = _codes(vectors), np.arange(len(vectors)) % 3 > 0
    for row in range(1, len(vectors), 9_000):
        # When something at a cosine of some 0.6 to one of them is looked up
        asked = vectors[row] + random.standard_normal(384, np.float32) * np.float32(1.3)
        rows = _halfway(codes, _codes(asked[None, :])[:, 0], mask)
        # Then it is handed on if it is in scope, with some thousands of others that are
        assert (row in rows) == mask[row]
        assert mask[rows].all()
        assert HALFWAY / 2 < len(rows) < HALFWAY * 2


def test_a_scope_of_few_rows_is_handed_on_whole() -> None:
    vectors = np.random.default_rng(4).standard_normal((MANY_ROWS * 2, 384), np.float32)
    mask = np.zeros(len(vectors), np.bool_)
    mask[[5, 70_000]] = True
    assert _halfway(_codes(vectors), _codes(vectors[:1])[:, 0], mask).tolist() == [5, 70_000]


def test_identical_rows_beyond_the_shortlist_are_all_in_reach(tmp_path: Path) -> None:
    table = {f"fact {n}": unit([1, 0, 0, 0]) for n in range(SHORTLIST * 2)}
    facts = [Fact(f"a:{n}", "a", "general", text, (), None) for n, text in enumerate(table)]
    index = GrainIndex(arrays_of(facts, tmp_path, Crafted(table)))
    assert len(index.nearest(unit([1, 0, 0, 0]), EVERYWHERE, limit=400)) == 400


def test_read_only_arrays_are_enough(tmp_path: Path) -> None:
    # Given arrays as Ray's object store hands them out
    arrays = arrays_of([ATP, DNA, MELANGE], tmp_path)
    before = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    index = GrainIndex(arrays)
    assert index.exact("what is DNA", EVERYWHERE) is not None
    assert len(index.nearest(HashEmbedder().embed(["DNA"])[0], EVERYWHERE)) == 3
    assert all((arrays[name] == before[name]).all() for name in arrays)


def test_saved_arrays_come_back_the_same(tmp_path: Path) -> None:
    arrays = arrays_of([ATP, DNA], tmp_path)
    save_arrays(arrays, tmp_path / "grains.npz")
    loaded = load_arrays(tmp_path / "grains.npz")
    assert loaded.keys() == arrays.keys()
    for name in arrays:
        assert loaded[name].dtype == arrays[name].dtype
        np.testing.assert_array_equal(loaded[name], arrays[name])
    assert not list(tmp_path.glob("*partial*"))


def test_an_empty_index_finds_nothing_and_can_be_saved(tmp_path: Path) -> None:
    arrays = arrays_of([], tmp_path)
    save_arrays(arrays, tmp_path / "grains.npz")
    index = GrainIndex(load_arrays(tmp_path / "grains.npz"))
    assert len(index) == 0
    assert index.exact("what is ATP", EVERYWHERE) is None
    assert index.nearest(HashEmbedder().embed(["what is ATP"])[0], EVERYWHERE) == []
    assert index.rarity("atp") > 0


def test_a_long_text_is_a_grain_only_when_someone_wrote_how_to_ask_for_it(tmp_path: Path) -> None:
    passage = replace(ATP, id="bio:p", asks=(), text="long " * GRAIN_CHARS)
    asked = replace(passage, id="bio:q", asks=("what is long",))
    short = replace(passage, id="bio:s", text="x" * GRAIN_CHARS)
    assert len(index_of([passage, asked, short], tmp_path)) == 2


def test_a_word_of_every_fact_is_less_rare_than_a_word_of_one_and_that_less_than_an_unknown_one(tmp_path: Path) -> None:
    facts = [Fact(f"a:{n}", "a", "general", f"Cells have part{'abcdefgh'[n]}.", (), None) for n in range(8)]
    index = index_of(facts, tmp_path)
    assert 0 < index.rarity("cell") < index.rarity("parta") < index.rarity("unheard")


def test_the_size_in_bytes_is_that_of_all_arrays(tmp_path: Path) -> None:
    arrays = arrays_of([ATP], tmp_path)
    assert GrainIndex(arrays).nbytes == sum(array.nbytes for array in arrays.values())


def test_of_many_ways_to_ask_the_nearest_are_judged(tmp_path: Path) -> None:
    asks = ("what is ATP for", *(f"question number {at}" for at in range(2 * ASKS_READ)), "what is ATP")
    [hit] = index_of([replace(ATP, asks=asks)], tmp_path).nearest(HashEmbedder().embed(["what is ATP"])[0], EVERYWHERE)
    candidate = hit.candidate()
    assert candidate.asks[:2] == ("what is ATP", "what is ATP for")
    assert len(candidate.asks) == len(candidate.cosines) - 1 == ASKS_READ
    assert candidate.cosines == (hit.cosines[0], *sorted(hit.cosines[1:], reverse=True)[:ASKS_READ])


def test_cosines_are_those_of_the_vectors_but_for_16_bits(tmp_path: Path) -> None:
    vectors = [[0.9, -0.4, 0.0, 1e-7], [-0.2, 0.6, 3e-5, -0.7], [1.0, 0.0, 0.0, 0.0], [-0.5, -0.5, -0.5, -0.5]]
    table = {text: unit(vector) for text, vector in zip((ATP.text, *ATP.asks, DNA.text, *DNA.asks), vectors, strict=False)}
    table |= {DNA.text: unit([0.3, 0.3, -0.9, 0.1]), DNA.asks[0]: unit([0, 1, 0, 0])}
    asked = unit([0.7, -0.1, 0.6, -0.3])
    index = GrainIndex(arrays_of([ATP, DNA], tmp_path, Crafted(table)))
    found = {hit.grain.source.fact_id: hit.cosines for hit in index.nearest(asked, EVERYWHERE)}
    for fact in (ATP, DNA):
        assert found[fact.id] == pytest.approx([float(table[text] @ asked) for text in (fact.text, *fact.asks)], abs=1e-3)
