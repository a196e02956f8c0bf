"""What a layer needs of a text engine. Every engine passes tests/contract/test_engines.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of generated text; `logprobs` are its tokens' natural-log probabilities."""

    text: str
    logprobs: tuple[float, ...] = ()


class Engine(Protocol):
    """A text model that serves one generation at a time."""

    name: str
    context_tokens: int

    def count_tokens(self, text: str) -> int:
        """How many tokens of the window `text` takes."""
        ...

    def render(self, system: str, user: str) -> str:
        """The prompt of one exchange, in the form that the model was trained on."""
        ...

    def generate(self, prompt: str, *, max_tokens: int, stop: tuple[str, ...] = ()) -> AsyncGenerator[Piece, None]:
        """Greedy continuation of `prompt`; closing the iterator stops the model.

        Raises LayerError when the prompt does not fit the window.
        """
        ...
