"""What every embedding model does: MiniLM under ONNX Runtime, and the same as a GGUF under llama.cpp."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kitbash_ray.config import load_settings
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.errors import ModelError
from kitbash_ray.knowledge import bert_graph
from kitbash_ray.knowledge.embedder import Embedder, Embeds, GgufEmbedder, open_embedder
from kitbash_ray.knowledge.encoder import Encoder
from kitbash_ray.knowledge.minilm import as_bert, read_weights

TEXTS = [
    "which port does redis listen on",
    "Carbon-14 has a half-life of 5,730 years, by which once living things are dated.",
    "why do leaves turn red in autumn?",
    "The Köppen classification has five main climate groups: A tropical, B dry, C temperate, D continental and E polar.",
    "naïve café über 東京 🦠",
]


@pytest.fixture(params=["onnx", "gguf"])
def embedding(request: pytest.FixtureRequest, embedder: Embeds, minilm_gguf: Path) -> Embeds:
    if request.param == "onnx":
        return embedder
    return open_embedder(load_settings(embedding_model=minilm_gguf))


def test_an_embedding_model_is_no_text_model(minilm_gguf: Path) -> None:
    with pytest.raises(ModelError):
        LlamaCpp(minilm_gguf, context_tokens=64)


def test_a_text_model_is_no_embedding_model(tiny_gguf: Path) -> None:
    with pytest.raises(ModelError):
        GgufEmbedder(tiny_gguf)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x09" * 5000])
def test_a_broken_graph_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx.*Delete it"):
        Embedder(tmp_path / "broken.onnx")


def test_both_say_nearly_the_same(embedder: Embeds, minilm_gguf: Path) -> None:
    other = GgufEmbedder(minilm_gguf)
    assert (embedder.embed(TEXTS) * other.embed(TEXTS)).sum(axis=1) == pytest.approx(1, abs=0.005)
    assert embedder.model_id != other.model_id


@pytest.mark.parametrize("signed", [True, False])
def test_either_kind_of_bytes_is_near_the_floats_that_it_was_made_from(signed: bool) -> None:
    bert = as_bert(read_weights())
    exact = bert_graph.float_model(bert)
    small = bert_graph.byte_model(bert, bert_graph.ranges(bert, exact), signed=signed)
    ours, theirs = (Encoder(model.SerializeToString()).read(TEXTS) for model in (small, exact))
    assert bert_graph.cosines(ours, theirs) == pytest.approx(1, abs=0.003)
    assert not np.array_equal(ours, theirs)


def test_embeddings_are_unit_vectors_that_know_what_is_alike(embedding: Embeds) -> None:
    cat, kitten, law = embedding.embed(["a cat", "a kitten", "the tax law"])
    assert [float(vector @ vector) for vector in (cat, kitten, law)] == pytest.approx([1, 1, 1], abs=1e-3)
    assert cat @ kitten > cat @ law


@pytest.mark.parametrize("text", ["", " ", "\x00", "🦠" * 3000, "x" * 8000, "[CLS] [SEP]", "the of and"])
def test_every_text_has_an_embedding(embedding: Embeds, text: str) -> None:
    (vector,) = embedding.embed([text])
    assert float(vector @ vector) == pytest.approx(1, abs=1e-3)
    assert 0 < embedding.count_tokens([text]) <= 256


def test_the_same_text_has_the_same_embedding_in_any_company(embedding: Embeds) -> None:
    alone = embedding.embed(["a cat"])[0]
    assert (embedding.embed(["a law", "a cat"])[1] == alone).all()
    assert embedding.embed([]).shape == (0, embedding.dimensions)


def test_many_may_ask_at_once(embedding: Embeds) -> None:
    alone = embedding.embed(TEXTS)
    with ThreadPoolExecutor(8) as others:
        for vectors in others.map(lambda _: embedding.embed(TEXTS), range(16)):
            assert (vectors == alone).all()
