"""Layer 4: a language model whose prompt is grounded in the facts that layer 2 found."""

from __future__ import annotations

from typing import Any

from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.engines.base import Engine
from kitbash_ray.engines.koboldcpp import KoboldCpp
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.engines.openai import OpenAIEngine
from kitbash_ray.layers.generative import GenerativeLayer
from kitbash_ray.models import resolve
from kitbash_ray.types import LayerResult, Message, Query, Source

SYSTEM = (
    "Answer the question in one to three sentences. Use the numbered facts where they help and cite "
    "them like [1]. If neither the facts nor your knowledge answer it, say: I don't know."
)

CONTEXT_TOKENS = 4096


class KoboldLayer(GenerativeLayer):
    """A chat model over retrieved facts."""

    def grounds(self, so_far: tuple[LayerResult, ...]) -> tuple[Source, ...]:
        for result in so_far:
            if result.layer == "cartridge":
                return result.sources
        return ()

    def messages(self, query: Query, sources: tuple[Source, ...]) -> tuple[Message, ...]:
        facts = "\n".join(f"[{number}] {source.text}" for number, source in enumerate(sources, 1))
        if query.chat:  # the caller's own words; what we know only joins them
            return _with_facts(query.chat.messages, facts)
        turns = (Message(turn.role, turn.text) for turn in query.history)
        question = f"Facts:\n{facts}\n\nQuestion: {query.text}" if facts else query.text
        return Message("system", SYSTEM), *turns, Message("user", question)


def _with_facts(messages: tuple[Message, ...], facts: str) -> tuple[Message, ...]:
    if not facts:
        return messages
    told = f"Facts that may help:\n{facts}"
    if messages and messages[0].role == "system":
        return Message("system", f"{messages[0].content}\n\n{told}"), *messages[1:]
    return Message("system", told), *messages


def open_kobold(settings: Settings, calibration: Calibration) -> KoboldLayer:
    """The layer of the settings. Raises ModelError when the configured model cannot be loaded."""
    return KoboldLayer(
        "kobold",
        _engine(settings),
        missing="no model: set KOBOLD_MODEL to the path of a GGUF file, or KOBOLD_TYPE to koboldcpp or openai and KOBOLD_HOST",
        max_tokens=settings.kobold_max_tokens,
        fit=calibration.layers.get("kobold"),
    )


def _engine(settings: Settings) -> Engine | None:
    elsewhere: dict[str, Any] = {
        "key": settings.kobold_key,
        "key_setting": "KOBOLD_KEY",
        "context_tokens": settings.kobold_context,
    }
    if settings.kobold_type in ("koboldcpp", "remote"):
        return KoboldCpp(settings.kobold_url, most_waiting=settings.kobold_queue, **elsewhere)
    if settings.kobold_type == "openai":
        return OpenAIEngine(settings.kobold_url, model=settings.kobold_model or "", **elsewhere)
    if settings.kobold_model:
        return LlamaCpp(
            resolve(settings.kobold_model, settings.cache_dir),
            context_tokens=settings.kobold_context or CONTEXT_TOKENS,
            gpu_layers=settings.kobold_gpu_layers,
            most_waiting=settings.kobold_queue,
        )
    return None
