"""Asking an engine for text in one line."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import Any

from kitbash_ray.engines.base import Engine, Piece, Sampling
from kitbash_ray.types import Message

PROMPT = "What is ATP?"
#: The window of the engines under test, in tokens.
WINDOW = 512


def asking(prompt: str = PROMPT) -> tuple[Message, ...]:
    return (Message("user", prompt),)


async def pieces_of(engine: Engine, prompt: str = PROMPT, *, max_tokens: int = 16, **sampling: Any) -> list[Piece]:
    async with aclosing(engine.generate(asking(prompt), Sampling(max_tokens, **sampling))) as pieces:
        return [piece async for piece in pieces]


async def text_of(engine: Engine, prompt: str = PROMPT, *, max_tokens: int = 16, **sampling: Any) -> str:
    return "".join(piece.text for piece in await pieces_of(engine, prompt, max_tokens=max_tokens, **sampling))


async def words_of(engine: Engine) -> list[str]:
    """What it says word by word, each with the space before it; the tiny model's tokens are words."""
    return re.findall(r"\s*\S+", await text_of(engine))
