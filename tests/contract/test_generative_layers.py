"""What is particular to layers 1 and 4, over an engine that says what it is told and over a tiny real model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import load_settings
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.errors import LayerError, ModelError
from kitbash_ray.layers.bitnet import BitnetLayer, open_bitnet
from kitbash_ray.layers.kobold import KoboldLayer, open_kobold
from kitbash_ray.testing import ScriptedEngine
from kitbash_ray.types import Chat, LayerResult, Message, Query, Source, Turn

SOURCES = (
    Source("bio", "bio:atp", "ATP carries energy.", 0.9),
    Source("bio", "bio:dna", "DNA stores heredity.", 0.8),
)
HISTORY = (Turn("user", "What is ATP?"), Turn("assistant", "It carries energy."))


def kobold_over(engine: ScriptedEngine | LlamaCpp | None) -> KoboldLayer:
    return KoboldLayer("kobold", engine, missing="no model: set KOBOLD_MODEL", max_tokens=64)


def bitnet_over(engine: ScriptedEngine | LlamaCpp | None) -> BitnetLayer:
    return BitnetLayer("bitnet", engine, missing="no model: set BITNET_MODEL", max_tokens=64)


def of_layer_2(*sources: Source) -> LayerResult:
    return LayerResult("cartridge", "answered", text="unsure", confidence=0.1, sources=sources)


@pytest.mark.parametrize(
    ("opened", "given", "advice"),
    [
        (open_kobold, {}, "KOBOLD_MODEL"),
    ],
)
async def test_a_layer_that_is_not_configured_says_how_to_configure_it(opened, given: dict[str, str], advice: str) -> None:
    layer = opened(load_settings(**given), load_calibration())
    result = await layer.answer(Query("What is ATP?"))
    assert result.outcome == "abstained"
    assert advice in result.reason
    assert layer.unavailable == result.reason


@pytest.mark.parametrize("opened", [open_bitnet, open_kobold])
def test_a_configured_model_that_is_not_there_is_an_error(opened) -> None:
    with pytest.raises(ModelError, match="There is no model file"):
        opened(load_settings(bitnet_model="nowhere.gguf", kobold_model="nowhere.gguf"), load_calibration())


@pytest.mark.parametrize("name", ["bitnet", "kobold"])
async def test_a_models_answer_has_a_score_and_no_confidence(name: str, request: pytest.FixtureRequest) -> None:
    result = await request.getfixturevalue(name).answer(Query("What is ATP?"))
    assert result.outcome == "answered"
    assert result.confidence is None
    assert 0 < result.score <= 1
    assert "not calibrated" in result.reason


async def test_the_score_is_the_mean_probability_of_the_tokens() -> None:
    result = await bitnet_over(ScriptedEngine("a", "b", "c", probability=0.25)).answer(Query("?"))
    assert result.score == pytest.approx(0.25)


async def test_layer_4_is_grounded_in_what_layer_2_found() -> None:
    engine = ScriptedEngine("yes")
    result = await kobold_over(engine).answer(Query("What is ATP?"), (LayerResult("grain", "abstained"), of_layer_2(*SOURCES)))
    prompt = engine.heard[0][-1].content
    assert "[1] ATP carries energy.\n[2] DNA stores heredity." in prompt
    assert prompt.index("[2]") < prompt.index("Question: What is ATP?")
    assert result.sources == SOURCES


async def test_layer_4_without_facts_is_asked_without_facts() -> None:
    engine = ScriptedEngine("yes")
    result = await kobold_over(engine).answer(Query("What is ATP?"), (LayerResult("cartridge", "failed"),))
    assert "Facts:" not in engine.heard[0][-1].content
    assert result.sources == ()


async def test_layer_4_reads_the_conversation() -> None:
    engine = ScriptedEngine("yes")
    await kobold_over(engine).answer(Query("why?", history=HISTORY))
    system, *others = engine.heard[0]
    assert system.role == "system"
    assert others == [Message("user", "What is ATP?"), Message("assistant", "It carries energy."), Message("user", "why?")]


async def test_layer_1_is_asked_the_question_alone() -> None:
    engine = ScriptedEngine("yes")
    await bitnet_over(engine).answer(Query("What is ATP?"), (of_layer_2(*SOURCES),))
    assert engine.heard[0][1:] == (Message("user", "What is ATP?"),)


@pytest.mark.parametrize(
    "said", [("I don't know.",), (" I do", " not know", "!"), ("Unknown.",), ("i'm not sure",), ("unknown",)]
)
async def test_a_model_that_declines_abstains(said: tuple[str, ...]) -> None:
    result = await kobold_over(ScriptedEngine(*said)).answer(Query("?"))
    assert (result.outcome, result.text) == ("abstained", None)


@pytest.mark.parametrize("said", [(), ("",), (" ", "\n")])
async def test_a_model_that_says_nothing_abstains(said: tuple[str, ...]) -> None:
    assert (await kobold_over(ScriptedEngine(*said)).answer(Query("?"))).outcome == "abstained"


@pytest.mark.parametrize("said", ["Unknown Pleasures is an album of 1979.", "Unknown to most, it carries energy."])
async def test_an_answer_that_begins_with_unknown_is_an_answer(said: str) -> None:
    assert (await kobold_over(ScriptedEngine(said)).answer(Query("?"))).outcome == "answered"


async def test_a_model_that_declines_with_a_curly_apostrophe_abstains() -> None:
    assert (await kobold_over(ScriptedEngine("I don’t know.")).answer(Query("?"))).outcome == "abstained"


async def test_closing_a_layers_stream_frees_its_model(kobold: KoboldLayer) -> None:
    expected = (await kobold.answer(Query("What is ATP?"))).text
    stream = kobold.stream(Query("something else"))
    await anext(stream)
    await stream.aclose()
    assert (await asyncio.wait_for(kobold.answer(Query("What is ATP?")), 10)).text == expected


async def test_facts_that_the_window_has_no_room_for_are_left_out_the_least_relevant_first() -> None:
    engine = ScriptedEngine("yes", context_tokens=200)
    long = Source("bio", "bio:long", "word " * 100, 0.7)
    result = await kobold_over(engine).answer(Query("What is ATP?"), (of_layer_2(*SOURCES, long),))
    assert result.sources == SOURCES
    assert "1 of 3 facts left out" in result.reason
    assert "word word" not in engine.heard[0][-1].content


async def test_a_question_that_the_window_has_no_room_for_abstains_and_says_how_large_it_is() -> None:
    result = await kobold_over(ScriptedEngine("yes", context_tokens=200)).answer(Query("word " * 200))
    assert result.outcome == "abstained"
    assert "200 tokens" in result.reason


async def test_what_a_generation_cost_and_how_long_its_first_token_took_is_told(kobold: KoboldLayer) -> None:
    generation = (await kobold.answer(Query("What is ATP?"))).generation
    assert generation.usage.completion_tokens == 8
    assert generation.usage.prompt_tokens > 8
    assert generation.first_token_ms > 0
    assert generation.finish == "length"


async def test_a_chat_is_told_in_the_callers_words_with_the_facts_beside_its_system_text() -> None:
    engine = ScriptedEngine("yes")
    chat = Chat((Message("system", "You are a pirate."), Message("user", "What is ATP?")), max_tokens=1)
    await kobold_over(engine).answer(Query("What is ATP?", chat=chat), (of_layer_2(*SOURCES),))
    system, user = engine.heard[0]
    assert system.content.startswith("You are a pirate.")
    assert "[1] ATP carries energy." in system.content
    assert user == chat.messages[1]


@pytest.mark.parametrize(
    ("chat", "what"),
    [
        (Chat((Message("user", "?"),), tools=({"type": "function", "function": {"name": "look"}},)), "tools"),
        (Chat((Message("user", "?"),), json_schema={}), "JSON schema"),
    ],
)
async def test_what_an_engine_cannot_do_is_said(chat: Chat, what: str) -> None:
    result = await kobold_over(ScriptedEngine("yes")).answer(Query("?", chat=chat))
    assert result.outcome == "abstained"
    assert what in result.reason


async def test_an_answer_keeps_the_json_schema_that_was_asked_for(tiny_gguf: Path) -> None:
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": False}
    layer = open_kobold(load_settings(kobold_model=tiny_gguf), load_calibration())
    result = await layer.answer(Query("?", chat=Chat((Message("user", "?"),), max_tokens=100, json_schema=schema)))
    assert set(json.loads(result.text)) == {"wet"}


async def test_a_json_schema_that_is_none_fails_in_one_sentence(kobold: KoboldLayer) -> None:
    chat = Chat((Message("user", "?"),), json_schema={"type": 7})
    with pytest.raises(LayerError, match="The JSON schema cannot be used"):
        await kobold.answer(Query("?", chat=chat))
