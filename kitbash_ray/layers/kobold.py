"""Layer 4: a language model whose prompt is grounded in the facts that layer 2 found."""

from __future__ import annotations

from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.engines.base import Engine
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.layers.generative import GenerativeLayer
from kitbash_ray.types import LayerResult, Query, Source

SYSTEM = (
    "Answer the question in one to three sentences. Use the numbered facts where they help and cite "
    "them like [1]. If neither the facts nor your knowledge answer it, say: I don't know."
)


class KoboldLayer(GenerativeLayer):
    """A chat model over retrieved facts."""

    def grounds(self, so_far: tuple[LayerResult, ...]) -> tuple[Source, ...]:
        for result in so_far:
            if result.layer == "cartridge":
                return result.sources
        return ()

    def prompt(self, engine: Engine, query: Query, sources: tuple[Source, ...]) -> str:
        facts = "\n".join(f"[{number}] {source.text}" for number, source in enumerate(sources, 1))
        turns = "\n".join(f"{turn.role}: {turn.text}" for turn in query.history)
        parts = [f"Facts:\n{facts}" if facts else "", f"Before:\n{turns}" if turns else "", f"Question: {query.text}"]
        return engine.render(SYSTEM, "\n\n".join(part for part in parts if part))


def open_kobold(settings: Settings, calibration: Calibration) -> KoboldLayer:
    """The layer of the settings. Raises ModelError when the configured model cannot be loaded."""
    engine = None
    missing = "no model: set KOBOLD_MODEL to the path of a GGUF file"
    if settings.kobold_type == "remote":
        missing = "remote engines are not in this version: set KOBOLD_TYPE=local and KOBOLD_MODEL"
    elif settings.kobold_model:
        engine = LlamaCpp(settings.kobold_model, context_tokens=settings.kobold_context, gpu_layers=settings.kobold_gpu_layers)
    return KoboldLayer(
        "kobold", engine, missing=missing, max_tokens=settings.kobold_max_tokens, fit=calibration.layers.get("kobold")
    )
