"""Layer 1: a small model that answers from its weights alone, in one short line."""

from __future__ import annotations

from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.engines.base import Engine
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.engines.openai import OpenAIEngine
from kitbash_ray.layers.generative import GenerativeLayer
from kitbash_ray.models import resolve
from kitbash_ray.types import Message, Query, Source

SYSTEM = "Answer in one short sentence. If you do not know the answer, say: I don't know."
CONTEXT_TOKENS = 1024


class BitnetLayer(GenerativeLayer):
    """A question-to-answer model. It hears the question alone: neither facts nor the conversation."""

    def messages(self, query: Query, sources: tuple[Source, ...]) -> tuple[Message, ...]:
        return Message("system", SYSTEM), Message("user", query.text)


def open_bitnet(settings: Settings, calibration: Calibration) -> BitnetLayer:
    """The layer of the settings. Raises ModelError when the configured model cannot be loaded."""
    return BitnetLayer(
        "bitnet",
        _engine(settings),
        missing="no model: set BITNET_MODEL to the path of a GGUF file, or BITNET_TYPE=remote and BITNET_HOST",
        max_tokens=settings.bitnet_max_tokens,
        fit=calibration.layers.get("bitnet"),
    )


def _engine(settings: Settings) -> Engine | None:
    if settings.bitnet_type == "remote":
        return OpenAIEngine(
            settings.bitnet_url, model=settings.bitnet_model or "", key=settings.bitnet_key, key_setting="BITNET_KEY"
        )
    if settings.bitnet_model:
        return LlamaCpp(resolve(settings.bitnet_model, settings.cache_dir), context_tokens=CONTEXT_TOKENS)
    return None
