"""Layer 1 over a student: it begins an answer, and only what it was taught is one."""

from __future__ import annotations

import pytest

from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import load_settings
from kitbash_ray.layers.bitnet import StudentLayer, open_bitnet
from kitbash_ray.testing import ScriptedEngine
from kitbash_ray.types import Chat, Message, Query, Source, Turn

ATP = Source("bio", "bio:atp", "ATP carries energy in cells.", 1.0, "a book")
ATPASE = Source("bio", "bio:atpase", "ATP synthase makes ATP.", 1.0, "a book")
NILE = Source("geo", "geo:nile", "The Nile is 6,650 km long.", 1.0)
TAUGHT = (ATP, ATPASE, NILE)
QUERY = Query("What is ATP?")


def student(*said: str, taught: tuple[Source, ...] = TAUGHT) -> tuple[StudentLayer, ScriptedEngine]:
    engine = ScriptedEngine(*said, probability=0.5)
    return StudentLayer(engine, taught, max_tokens=64), engine


async def test_the_beginning_of_one_known_text_alone_is_completed_and_cited() -> None:
    layer, _ = student("ATP", " car", "elessly", " wrong")
    result = await layer.answer(QUERY)
    assert (result.outcome, result.text, result.sources) == ("answered", ATP.text, (ATP,))
    assert len(result.evidence) == 4
    assert result.score == pytest.approx(0.5)


async def test_it_goes_on_while_several_texts_begin_so() -> None:
    layer, _ = student(" ATP", " ", "synth", "ase")
    assert (await layer.answer(QUERY)).sources == (ATPASE,)


async def test_it_is_stopped_as_soon_as_it_is_clear() -> None:
    layer, _ = student("The", " Nile", " is", " wet")
    assert (await layer.answer(QUERY)).evidence[-1] == pytest.approx(1 / 64, abs=1e-4)  # one token of sixty-four


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (("Mito", "chondria"), "no fact gives"),
        (("unk", "nown"), "does not know"),
        (("I don't know.",), "does not know"),
        ((), "ended before"),
        (("ATP",), "ended before"),
    ],
)
async def test_anything_else_is_no_answer(said: tuple[str, ...], why: str) -> None:
    layer, _ = student(*said)
    result = await layer.answer(QUERY)
    assert (result.outcome, result.text) == ("abstained", None)
    assert why in result.reason


async def test_a_fact_that_was_changed_or_removed_since_is_no_answer() -> None:
    layer, _ = student("ATP", " carries")
    layer.follow([(ATP.fact_id, "ATP carries energy in all cells."), (NILE.fact_id, NILE.text)])
    assert (await layer.answer(QUERY)).outcome == "abstained"
    layer.follow([(ATP.fact_id, ATP.text)])
    assert (await layer.answer(QUERY)).sources == (ATP,)


@pytest.mark.parametrize(
    "query",
    [
        Query("?", factions=("fiction",)),
        Query("?", history=(Turn("user", "hi"),)),
        Query("?", chat=Chat((Message("user", "?"),), json_schema={})),
    ],
)
async def test_what_it_was_not_taught_for_it_is_not_asked(query: Query) -> None:
    layer, engine = student("ATP carries")
    assert (await layer.answer(query)).outcome == "abstained"
    assert engine.heard == []


async def test_without_a_fact_of_these_cartridges_it_is_not_asked() -> None:
    layer, engine = student("ATP carries")
    layer.follow([])
    assert "taught none" in (await layer.answer(QUERY)).reason
    assert engine.heard == []


async def test_only_the_cartridges_that_were_asked_for_answer() -> None:
    layer, _ = student("ATP carries")
    assert (await layer.answer(Query("?", cartridges=("geo",)))).outcome == "abstained"
    assert (await layer.answer(Query("?", cartridges=("bio",)))).sources == (ATP,)


async def test_the_shipped_student_knows_shipped_facts_and_tells_them_word_for_word() -> None:
    layer = open_bitnet(load_settings(), load_calibration())
    assert isinstance(layer, StudentLayer)
    result = await layer.answer(QUERY)
    assert result.outcome == "answered"
    assert result.sources[0].fact_id.startswith("biochemistry:")
    assert result.text == result.sources[0].text
    assert (await layer.answer(Query("who won the football match last night"))).outcome == "abstained"


async def test_nothing_is_shown_before_it_is_whole() -> None:
    layer, _ = student("ATP", " carries")
    items = [item async for item in layer.stream(QUERY)]
    assert items[0] == ATP.text
    assert len(items) == 2
