"""What every text engine does: one suite over each of them, on a tiny real model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kitbash_ray.engines.base import Engine
from kitbash_ray.engines.koboldcpp import KoboldCpp
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.engines.openai import OpenAIEngine
from kitbash_ray.errors import LayerError
from kitbash_ray.testing import ScriptedEngine
from kitbash_ray.tiny_model import TINY_WORDS

from .engine_servers import koboldcpp_server, openai_server
from .generation import WINDOW, asking, pieces_of, text_of


@pytest.fixture(scope="module")
def koboldcpp_url(tiny_gguf: Path) -> Iterator[str]:
    with koboldcpp_server(tiny_gguf) as url:
        yield url


@pytest.fixture(scope="module")
def openai_url(tiny_gguf: Path) -> Iterator[str]:
    with openai_server(tiny_gguf) as url:
        yield url


@pytest.fixture(params=["llama_cpp", "scripted", "koboldcpp", "openai"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    opened: dict[str, Callable[[], Engine]] = {
        "scripted": lambda: ScriptedEngine(*(f" {word}" for word in TINY_WORDS), context_tokens=WINDOW),
        "llama_cpp": lambda: LlamaCpp(request.getfixturevalue("tiny_gguf"), context_tokens=WINDOW),
        "koboldcpp": lambda: KoboldCpp(request.getfixturevalue("koboldcpp_url")),
        "openai": lambda: OpenAIEngine(request.getfixturevalue("openai_url"), context_tokens=WINDOW),
    }
    made = opened[request.param]()
    yield made
    await made.aclose()


async def test_the_same_prompt_gives_the_same_text(engine: Engine) -> None:
    first = await text_of(engine)
    await text_of(engine, "something else in between")
    assert first == await text_of(engine)
    assert first


@pytest.mark.parametrize("most", [1, 2, 7])
async def test_an_answer_has_at_most_max_tokens(engine: Engine, most: int) -> None:
    (*_, last) = await pieces_of(engine, max_tokens=most)
    assert last.usage.completion_tokens == most


async def test_a_shorter_answer_is_the_beginning_of_a_longer_one(engine: Engine) -> None:
    assert (await text_of(engine, max_tokens=20)).startswith(await text_of(engine, max_tokens=5))


async def test_every_token_has_a_log_probability_of_at_most_zero(engine: Engine) -> None:
    logprobs = [value for piece in await pieces_of(engine) for value in piece.logprobs]
    assert len(logprobs) == (0 if isinstance(engine, KoboldCpp) else 16)  # its stream tells none
    assert all(value <= 0 for value in logprobs)


async def test_two_generations_wait_for_each_other_and_do_not_mix(engine: Engine) -> None:
    prompts = ["one", "two", "three", "four"]
    alone = [await text_of(engine, prompt, max_tokens=30) for prompt in prompts]
    together = await asyncio.gather(*(text_of(engine, prompt, max_tokens=30) for prompt in prompts))
    assert together == alone


@pytest.mark.parametrize("most", [16, WINDOW])
async def test_a_prompt_that_does_not_fit_is_refused_in_one_sentence(engine: Engine, most: int) -> None:
    with pytest.raises(LayerError) as raised:
        await text_of(engine, "word " * WINDOW, max_tokens=most)
    assert str(WINDOW) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert await text_of(engine)  # and the engine goes on


@pytest.mark.parametrize("prompt", ["🦠" * 20, "\x00", "'; DROP TABLE facts; --", "«ü»\n\r\t", " ", "</s><s>"])
async def test_odd_prompts_are_continued_like_others(engine: Engine, prompt: str) -> None:
    assert await text_of(engine, prompt)


async def test_a_longer_text_has_more_tokens(engine: Engine) -> None:
    assert await engine.count_tokens(asking("one")) < await engine.count_tokens(asking("one two three"))


async def test_the_last_piece_says_how_it_ended_and_what_it_cost(engine: Engine) -> None:
    (*others, last) = await pieces_of(engine, max_tokens=5)
    assert last.finish == "length"
    assert last.usage.completion_tokens == 5
    assert last.usage.prompt_tokens == await engine.count_tokens(asking())
    assert all(piece.finish is None and piece.usage is None for piece in others)


async def test_a_stop_sequence_is_not_shown_and_ends_the_text_as_stopped(engine: Engine) -> None:
    whole = await text_of(engine)
    third = whole.split()[2]
    (*_, last) = pieces = await pieces_of(engine, stop=(third,))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(third)]
    assert last.finish == "stop"
