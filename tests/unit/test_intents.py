"""Grains with many ways to ask: learned from together, sure of what is theirs, silent where there is nothing to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kitbash_ray.calibration import load_calibration
from kitbash_ray.knowledge import intents
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope, build_arrays
from kitbash_ray.knowledge.intents import MEAN_ASKS, MIN_GRAINS, Intents, fit_intents, intent_cartridges
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.testing import HashEmbedder
from kitbash_ray.types import Query

GENERAL = Scope()
TOPICS = "loan tyre visa bread guitar tax plumber football pension garden camera puppy".split()
WAYS = (
    "tell me about my {}", "what of the {} then", "help with a {} please", "is the {} alright", "can you see my {}",
    "the {} again", "{} what now", "now the {} thing", "a {} question",
)  # fmt: skip


def facts(topics: Sequence[str] = TOPICS, ways: int = 8, cartridge: str = "faq") -> list[Fact]:
    """One fact for each topic, with its first `ways` ways to ask."""
    return [
        Fact(
            f"{cartridge}:{topic}", cartridge, "general", f"Answer {at}.", tuple(way.format(topic) for way in WAYS[:ways]), None
        )
        for at, topic in enumerate(topics)
    ]


def index_of(known: Sequence[Fact], folder: Path) -> GrainIndex:
    return GrainIndex(build_arrays(known, VectorStore(HashEmbedder(), folder)))


def vector_of(text: str) -> npt.NDArray[np.float32]:
    return HashEmbedder().embed([text])[0]


def clusters(grains: int, asks: int, spread: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Unit vectors around a centre for each grain. All asks stray far along directions that grains share."""
    random = np.random.RandomState(1)
    centres, shared = random.randn(grains, 32), random.randn(4, 32)
    owner = np.repeat(np.arange(grains, dtype=np.int32), asks)
    rows = centres[owner] + spread * random.randn(len(owner), 4) @ shared + 0.3 * random.randn(len(owner), 32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), owner


@pytest.mark.parametrize("topic", TOPICS)
def test_a_new_way_to_ask_finds_its_grain(topic: str, tmp_path: Path) -> None:
    hit = index_of(facts(), tmp_path).vote(vector_of(WAYS[8].format(topic)), GENERAL)
    assert hit is not None
    assert hit.grain.source.fact_id == f"faq:{topic}"
    assert hit.cosine == max(hit.cosines)


def test_what_the_asks_of_all_grains_share_does_not_mislead_a_vote() -> None:
    vectors, owner = clusters(grains=20, asks=20, spread=1.5)
    train = np.arange(len(owner)) % 2 == 0
    learned = Intents(fit_intents(vectors[train], owner[train]))
    everything = np.ones(20, np.bool_)
    votes = [learned.vote(vector, everything) for vector in vectors[~train]]
    by_vote = np.mean([vote is not None and vote.grain == its for vote, its in zip(votes, owner[~train], strict=True)])
    by_nearest = np.mean(owner[train][(vectors[~train] @ vectors[train].T).argmax(axis=1)] == owner[~train])
    assert by_vote > by_nearest


def test_a_question_of_no_grain_gets_lower_odds_than_one_of_a_grain() -> None:
    vectors, owner = clusters(grains=20, asks=10, spread=0.5)
    known = owner < 15
    learned = Intents(
        fit_intents(vectors[known & (np.arange(len(owner)) % 2 == 0)], owner[known & (np.arange(len(owner)) % 2 == 0)])
    )
    odds = np.array([vote.log_odds for vector in vectors if (vote := learned.vote(vector, np.ones(15, np.bool_)))])
    assert np.median(odds[known]) > 0 > np.median(odds[~known])


def test_only_grains_in_scope_are_voted_for(tmp_path: Path) -> None:
    index = index_of([*facts(), *facts([f"{topic}s" for topic in TOPICS], cartridge="other")], tmp_path)
    for name in ("faq", "other"):
        hit = index.vote(vector_of("a loan question"), Scope(cartridges=(name,)))
        assert hit is not None
        assert hit.grain.source.cartridge == name
    assert index.vote(vector_of("a loan question"), Scope(("fiction",))) is None


def test_cartridges_with_few_ways_to_ask_are_left_to_the_evidence(tmp_path: Path) -> None:
    index = index_of([*facts(), *facts(["moon"], ways=2, cartridge="few")], tmp_path)
    found = {hit.grain.source.cartridge: hit.grain.votes for hit in index.nearest(vector_of("tell me about my moon"), GENERAL)}
    assert found == {"few": False, "faq": True}


@pytest.mark.parametrize(("counts", "learned"), [((5, 5), True), ((5, 4), False), ((0, 10), True), ((), False)])
def test_the_average_grain_of_a_cartridge_decides(counts: tuple[int, ...], learned: bool) -> None:
    assert MEAN_ASKS == 5
    assert intent_cartridges([("c", count) for count in counts]) == (frozenset("c") if learned else frozenset())


@pytest.mark.parametrize("count", [0, 1, MIN_GRAINS - 1])
def test_a_handful_of_grains_teaches_nothing(count: int, tmp_path: Path) -> None:
    assert index_of(facts(TOPICS[:count]), tmp_path).vote(vector_of("a loan question"), GENERAL) is None


def test_grains_with_one_ask_do_not_break_the_fit() -> None:
    vectors, owner = clusters(grains=MIN_GRAINS + 5, asks=6, spread=0.5)
    kept = (owner < MIN_GRAINS) | (np.arange(len(owner)) % 6 == 0)
    assert len(fit_intents(vectors[kept], owner[kept])["intent_grains"]) == MIN_GRAINS + 5


def test_asks_that_tell_nothing_apart_are_not_learned_from() -> None:
    same = np.tile(np.eye(1, 8, dtype=np.float32), (60, 1))
    arrays = fit_intents(same, np.repeat(np.arange(12, dtype=np.int32), 5))
    assert np.isfinite(arrays["intent_weights"]).all()


def test_with_many_grains_each_brings_fewer_asks_and_in_the_end_none(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, owner = clusters(grains=12, asks=20, spread=0.5)
    seen = []
    regression = intents._regression
    monkeypatch.setattr(intents, "_regression", lambda v, o: (seen.append(np.bincount(o).max()), regression(v, o))[1])
    monkeypatch.setattr(intents, "MAX_WORK", 12 * 12 * 7)
    assert len(fit_intents(vectors, owner)["intent_grains"]) == 12
    assert max(seen) == 7
    monkeypatch.setattr(intents, "MAX_WORK", 12 * 12 * 4)
    assert not len(fit_intents(vectors, owner)["intent_grains"])


def test_the_same_asks_teach_the_same() -> None:
    first, second = (fit_intents(*clusters(12, 6, 0.5)) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


async def test_layer_0_answers_with_the_vote_and_its_odds(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    index = GrainIndex(build_arrays(facts(), VectorStore(embedder, tmp_path)))
    layer = GrainLayer(index, embedder, load_calibration())
    known = await layer.answer(Query("a loan question"))
    strange = await layer.answer(Query("zebra migration patterns"))
    assert known.sources[0].fact_id == "faq:loan"
    assert known.confidence is not None
    assert strange.confidence is not None
    assert known.confidence > 0.5 > strange.confidence


async def test_a_question_without_a_topic_may_be_one_of_many_ways_to_ask(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    small_talk = Fact(
        "faq:can",
        "faq",
        "general",
        "I answer questions.",
        tuple("what can you do/can you do it/what do you do".split("/")),
        None,
    )
    learned = GrainLayer(
        GrainIndex(build_arrays([*facts(), small_talk], VectorStore(embedder, tmp_path))), embedder, load_calibration()
    )
    alone = GrainLayer(GrainIndex(build_arrays([small_talk], VectorStore(embedder, tmp_path))), embedder, load_calibration())
    assert (await learned.answer(Query("and what can you do?"))).sources[0].fact_id == "faq:can"
    assert (await alone.answer(Query("and what can you do?"))).outcome == "abstained"
