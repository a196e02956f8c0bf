"""What is particular to layers 1 and 4, over an engine that says what it is told and over a tiny real model."""

from __future__ import annotations

import asyncio

import pytest

from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import load_settings
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.errors import ModelError
from kitbash_ray.layers.bitnet import BitnetLayer, open_bitnet
from kitbash_ray.layers.kobold import KoboldLayer, open_kobold
from kitbash_ray.testing import ScriptedEngine
from kitbash_ray.types import LayerResult, Query, Source, Turn

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
        (open_bitnet, {}, "BITNET_MODEL"),
        (open_bitnet, {"bitnet_type": "remote"}, "BITNET_TYPE=local"),
        (open_kobold, {}, "KOBOLD_MODEL"),
        (open_kobold, {"kobold_type": "remote"}, "KOBOLD_TYPE=local"),
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
    (prompt,) = engine.prompts
    assert "[1] ATP carries energy.\n[2] DNA stores heredity." in prompt
    assert prompt.index("[2]") < prompt.index("Question: What is ATP?")
    assert result.sources == SOURCES


async def test_layer_4_without_facts_is_asked_without_facts() -> None:
    engine = ScriptedEngine("yes")
    result = await kobold_over(engine).answer(Query("What is ATP?"), (LayerResult("cartridge", "failed"),))
    assert "Facts:" not in engine.prompts[0]
    assert result.sources == ()


async def test_layer_4_reads_the_conversation() -> None:
    engine = ScriptedEngine("yes")
    await kobold_over(engine).answer(Query("why?", history=HISTORY))
    prompt = engine.prompts[0]
    assert prompt.index("user: What is ATP?") < prompt.index("assistant: It carries energy.") < prompt.index("Question: why?")


async def test_layer_1_is_asked_the_question_alone() -> None:
    engine = ScriptedEngine("yes")
    await bitnet_over(engine).answer(Query("What is ATP?"), (of_layer_2(*SOURCES),))
    assert engine.prompts == ["Question: What is ATP?\nAnswer:"]


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
    expected = await kobold.answer(Query("What is ATP?"))
    stream = kobold.stream(Query("something else"))
    await anext(stream)
    await stream.aclose()
    assert await asyncio.wait_for(kobold.answer(Query("What is ATP?")), 10) == expected
