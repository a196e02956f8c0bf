"""What every embedding model does, tried on MiniLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitbash_ray.config import load_settings
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.errors import ModelError
from kitbash_ray.knowledge.embedder import Embedder, open_embedder
from kitbash_ray.knowledge.minilm import ensure_minilm


def test_an_embedding_model_is_no_text_model(embedder: Embedder) -> None:
    with pytest.raises(ModelError):
        LlamaCpp(ensure_minilm(load_settings().cache_dir), context_tokens=64)


def test_a_text_model_is_no_embedding_model(tiny_gguf: Path) -> None:
    with pytest.raises(ModelError):
        Embedder(tiny_gguf)


def test_embeddings_are_unit_vectors_that_know_what_is_alike(embedder: Embedder) -> None:
    cat, kitten, law = embedder.embed(["a cat", "a kitten", "the tax law"])
    assert [float(vector @ vector) for vector in (cat, kitten, law)] == pytest.approx([1, 1, 1], abs=1e-3)
    assert cat @ kitten > cat @ law


@pytest.mark.parametrize("text", ["", " ", "\x00", "🦠" * 3000, "x" * 8000, "[CLS] [SEP]", "the of and"])
def test_every_text_has_an_embedding(embedder: Embedder, text: str) -> None:
    (vector,) = embedder.embed([text])
    assert float(vector @ vector) == pytest.approx(1, abs=1e-3)


def test_the_same_text_has_the_same_embedding_in_any_company(embedder: Embedder) -> None:
    alone = embedder.embed(["a cat"])[0]
    assert (embedder.embed(["a law", "a cat"])[1] == alone).all()
    assert embedder.embed([]).shape == (0, embedder.dimensions)


def test_any_embedding_model_can_be_configured(embedder: Embedder) -> None:
    model = ensure_minilm(load_settings().cache_dir)
    other = open_embedder(load_settings(embedding_model=model))
    assert other.model_id == embedder.model_id
