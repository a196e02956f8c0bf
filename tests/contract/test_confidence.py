"""A language model's confidence, from the probabilities of its tokens."""

from __future__ import annotations

from pathlib import Path

from kitbash_ray.calibration import LEAF, LayerCalibration
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.layers.bitnet import BitnetLayer
from kitbash_ray.layers.generative import TOKEN_FEATURES
from kitbash_ray.types import Query


async def test_a_fit_of_this_very_model_gives_a_confidence_and_that_of_another_none(tiny_gguf: Path) -> None:
    engine = LlamaCpp(tiny_gguf, context_tokens=256)
    stump = ((LEAF, 0.0, 0, 0, 0.0),)
    for model, stated in ((engine.name, 0.5), ("another.gguf", None)):
        fit = LayerCalibration(TOKEN_FEATURES, (stump,), 0.0, 100, 0.5, (), model)
        layer = BitnetLayer("bitnet", engine, missing="", max_tokens=8, fit=fit)
        result = await layer.answer(Query("What is ATP?"))
        assert result.confidence == stated
        assert len(result.evidence) == len(TOKEN_FEATURES)
