"""Build products: made once for a content, again for a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope
from kitbash_ray.knowledge.index import IndexBuilder
from kitbash_ray.knowledge.library import Library
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.testing import HashEmbedder

WriteCartridge = Callable[..., Path]


@pytest.fixture
def open_builder(library_folder: Path, tmp_path: Path) -> Callable[[], IndexBuilder]:
    """A builder as a new process would open it: same folders, an embedder that has seen nothing."""

    def build(dimensions: int = 64) -> IndexBuilder:
        cache = tmp_path / "cache"
        return IndexBuilder(Library(library_folder), VectorStore(HashEmbedder(dimensions), cache), cache)

    return build


OpenBuilder = Callable[..., IndexBuilder]


def answer_of(builder: IndexBuilder, question: str) -> str | None:
    found = GrainIndex(builder.grains(builder.version())).exact(question, Scope())
    return found and found.source.text


def test_an_edited_cartridge_is_a_new_version_and_costs_only_its_new_texts(
    open_builder: OpenBuilder, write_cartridge: WriteCartridge
) -> None:
    # Given an index over two facts
    atp = ("atp", "ATP carries energy.", "what is ATP", "explain ATP")
    write_cartridge("bio", atp, ("dna", "DNA stores heredity.", "what is DNA", "explain DNA"))
    builder = open_builder()
    before = builder.version()
    builder.grains(before)
    builder.embedder.embedded.clear()
    # When one sentence is edited
    write_cartridge("bio", atp, ("dna", "DNA keeps heredity.", "what is DNA", "explain DNA"))
    # Then the version is another one, and only that sentence is embedded
    assert builder.version() != before
    assert answer_of(builder, "what is DNA") == "DNA keeps heredity."
    assert builder.embedder.embedded == ["DNA keeps heredity."]


def test_going_back_to_an_old_content_finds_its_index_again(open_builder: OpenBuilder, write_cartridge: WriteCartridge) -> None:
    builder = open_builder()
    for text in ("One.", "Two.", "One."):
        write_cartridge("bio", ("a", text, "what", "which"))
        assert answer_of(builder, "what") == text


def test_a_second_process_builds_nothing(
    open_builder: OpenBuilder, write_cartridge: WriteCartridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cartridge("bio", ("atp", "ATP carries energy.", "what is ATP", "explain ATP"))
    assert answer_of(open_builder(), "what is ATP") == "ATP carries energy."
    second = open_builder()
    monkeypatch.setattr(Library, "load", lambda _: pytest.fail("the library was read although the index is there"))
    assert answer_of(second, "what is ATP") == "ATP carries energy."
    assert second.embedder.embedded == []


def test_another_embedding_model_is_another_version(open_builder: OpenBuilder, write_cartridge: WriteCartridge) -> None:
    write_cartridge("bio", ("atp", "ATP carries energy."))
    assert open_builder(64).version() != open_builder(32).version()


def test_a_broken_cartridge_is_reported_and_the_others_answer(
    open_builder: OpenBuilder, write_cartridge: WriteCartridge
) -> None:
    write_cartridge("good", ("atp", "ATP carries energy.", "what is ATP", "explain ATP"))
    (write_cartridge("bad", ("x", "A fact.")) / "facts.yaml").write_text("- [")
    builder = open_builder()
    assert answer_of(builder, "what is ATP") == "ATP carries energy."
    assert len(builder.problems) == 1
    assert "bad" in builder.problems[0]


def test_a_broken_cartridge_is_reported_on_every_start(open_builder: OpenBuilder, write_cartridge: WriteCartridge) -> None:
    write_cartridge("good", ("atp", "ATP carries energy."))
    (write_cartridge("bad", ("x", "A fact.")) / "facts.yaml").write_text("- [")
    for builder in (open_builder(), open_builder()):
        builder.grains(builder.version())
        assert len(builder.problems) == 1


def test_an_edit_between_version_and_build_does_not_spoil_the_old_version(
    open_builder: OpenBuilder, write_cartridge: WriteCartridge
) -> None:
    # Given a version whose index is not built yet
    write_cartridge("bio", ("a", "One.", "what", "which"))
    builder = open_builder()
    version = builder.version()
    # When the cartridge is edited before the build, and later the edit is taken back
    write_cartridge("bio", ("a", "Two.", "what", "which"))
    with pytest.raises(CartridgeError, match="changed while"):
        builder.grains(version)
    write_cartridge("bio", ("a", "One.", "what", "which"))
    # Then the answer is what the file says
    assert answer_of(open_builder(), "what") == "One."


def test_an_empty_library_has_an_empty_index(open_builder: OpenBuilder) -> None:
    builder = open_builder()
    assert len(GrainIndex(builder.grains(builder.version()))) == 0
