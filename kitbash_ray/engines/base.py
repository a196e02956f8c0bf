"""What a layer needs of a text engine. Every engine passes tests/contract/test_engines.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kitbash_ray.errors import LayerError
from kitbash_ray.types import Message, Usage

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue. The default is greedy, so that answers can be repeated.

    `json_schema` makes the engine write JSON of that schema; `{}` any JSON object. `tools` and
    `tool_choice` are in the shape of OpenAI's chat completions.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    json_schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of generated text; `logprobs` are its tokens' natural-log probabilities, if the engine tells them.

    The last piece says how the text ended and what it cost; only it has `tool_calls`.
    """

    text: str
    logprobs: tuple[float, ...] = ()
    finish: Finish | None = None
    usage: Usage | None = None
    tool_calls: tuple[dict[str, Any], ...] = field(default=())


class Engine(Protocol):
    """A text model.

    `name` is the model's, "" until an engine elsewhere has told it; `takes_tools` whether it can
    call tools, `keeps_schema` whether it can be held to a JSON schema.
    """

    name: str
    takes_tools: bool
    keeps_schema: bool

    async def context_tokens(self) -> int:
        """The size of the model's window. Raises LayerUnavailable when the engine is not there."""
        ...

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens of the window the prompt of `messages` takes; an estimate where the engine cannot count."""
        ...

    def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """What the model says to `messages`; closing the iterator stops the model.

        Raises LayerError when prompt and answer do not fit the window, LayerUnavailable when the
        engine is not there or has too many waiting.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


def too_long(prompt_tokens: int, max_tokens: int, name: str, window: int) -> LayerError:
    """What to raise when prompt and answer do not fit."""
    return LayerError(
        f"The prompt takes {prompt_tokens} tokens and the answer up to {max_tokens}, "
        f"but {name} has a window of {window}; give it a larger one."
    )
