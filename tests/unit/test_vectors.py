"""The memory of an embedder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kitbash_ray.knowledge.vectors import CHUNK, VectorStore
from kitbash_ray.testing import HashEmbedder


def test_vectors_are_those_of_the_embedder_in_order(tmp_path: Path) -> None:
    texts = ["what is ATP", "what is DNA", "🦠", ""]
    made = VectorStore(HashEmbedder(), tmp_path).vectors(texts)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, HashEmbedder().embed(texts), atol=1e-3)


def test_each_text_is_embedded_once(tmp_path: Path) -> None:
    store = VectorStore(HashEmbedder(), tmp_path)
    first = store.vectors(["one", "two"])
    again = store.vectors(["two", "three", "one"])
    assert store.embedder.embedded == ["one", "two", "three"]
    np.testing.assert_array_equal(again[[2, 0]], first)


def test_a_text_that_stands_twice_is_embedded_once(tmp_path: Path) -> None:
    store = VectorStore(HashEmbedder(), tmp_path)
    store.vectors(["same", "same"])
    assert store.embedder.embedded == ["same"]


def test_a_text_that_stands_twice_has_two_rows(tmp_path: Path) -> None:
    rows = VectorStore(HashEmbedder(), tmp_path).vectors(["same", "other", "same"])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert len(rows) == 3


def test_two_stores_on_one_file_share_what_they_know(tmp_path: Path) -> None:
    # Given two stores that were opened before either embedded anything
    one, two = VectorStore(HashEmbedder(), tmp_path), VectorStore(HashEmbedder(), tmp_path)
    made = one.vectors(["one", "two"])
    # When the second is asked for the same texts
    found = two.vectors(["one", "two", "three"])
    # Then it embeds only what the first has not
    assert two.embedder.embedded == ["three"]
    np.testing.assert_array_equal(found[:2], made)


def test_another_model_has_vectors_of_its_own(tmp_path: Path) -> None:
    VectorStore(HashEmbedder(64), tmp_path).vectors(["one"])
    other = VectorStore(HashEmbedder(32), tmp_path)
    assert other.vectors(["one"]).shape == (1, 32)
    assert other.embedder.embedded == ["one"]


def test_no_texts_give_no_rows(tmp_path: Path) -> None:
    assert VectorStore(HashEmbedder(), tmp_path).vectors([]).shape == (0, 64)


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1, 1001])
def test_progress_goes_up_to_the_number_of_texts(count: int, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    store = VectorStore(HashEmbedder(), tmp_path)
    store.vectors([f"text {n}" for n in range(count)], lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (count, count)
    assert all(total == count for _, total in seen)


def test_what_was_embedded_before_an_error_is_kept(tmp_path: Path) -> None:
    class Failing(HashEmbedder):
        def embed(self, texts):
            if "bad" in texts:
                raise RuntimeError("no")
            return super().embed(texts)

    texts = [f"text {n}" for n in range(CHUNK)]
    with pytest.raises(RuntimeError):
        VectorStore(Failing(), tmp_path).vectors([*texts, "bad"])
    after = VectorStore(HashEmbedder(), tmp_path)
    after.vectors([*texts, "good"])
    assert after.embedder.embedded == ["good"]
