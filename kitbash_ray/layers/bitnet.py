"""Layer 1: a small model that answers from its weights alone, in one short line."""

from __future__ import annotations

from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.engines.base import Engine
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.layers.generative import GenerativeLayer
from kitbash_ray.types import Query, Source

CONTEXT_TOKENS = 1024


class BitnetLayer(GenerativeLayer):
    """A question-to-answer model."""

    def prompt(self, engine: Engine, query: Query, sources: tuple[Source, ...]) -> str:
        return f"Question: {query.text}\nAnswer:"


def open_bitnet(settings: Settings, calibration: Calibration) -> BitnetLayer:
    """The layer of the settings. Raises ModelError when the configured model cannot be loaded."""
    engine = None
    missing = "no model: set BITNET_MODEL to the path of a GGUF file"
    if settings.bitnet_type == "remote":
        missing = "remote engines are not in this version: set BITNET_TYPE=local and BITNET_MODEL"
    elif settings.bitnet_model:
        engine = LlamaCpp(settings.bitnet_model, context_tokens=CONTEXT_TOKENS)
    return BitnetLayer(
        "bitnet", engine, missing=missing, max_tokens=settings.bitnet_max_tokens, fit=calibration.layers.get("bitnet")
    )
