"""Names, choice and memory of LoRA adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitbash_ray import adapters
from kitbash_ray.adapters import Adapters, Choice
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.errors import LayerError, ModelError
from kitbash_ray.testing import ScriptedEngine
from kitbash_ray.tiny_model import write_tiny_adapter


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for seed, name in enumerate(("first", "second")):
        adapters.add(write_tiny_adapter(tmp_path / f"{name}.gguf", seed=seed), None, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def engine(tiny_gguf: Path) -> LlamaCpp:
    return LlamaCpp(tiny_gguf, context_tokens=64)


def test_an_added_adapter_has_the_files_name_or_a_given_one(cache: Path, tmp_path: Path) -> None:
    assert adapters.add(tmp_path / "first.gguf", "other", cache) == "other"
    assert adapters.names(cache) == ["first", "other", "second"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", " ", "x" * 65, ".hidden"])
def test_a_name_that_could_be_a_path_is_refused(name: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        adapters.add(tmp_path / "first.gguf", name or " ", cache)


def test_what_is_no_gguf_is_not_added(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(ModelError, match="no GGUF"):
        adapters.add(tmp_path / "x.gguf", None, cache)
    with pytest.raises(ModelError, match="no adapter file"):
        adapters.add(tmp_path / "nowhere.gguf", None, cache)


async def test_rolling_back_goes_to_the_one_before_and_forth_again(cache: Path, engine: LlamaCpp) -> None:
    own = Adapters(engine, "kobold", cache)
    assert await own.use("first") == Choice("first", None)
    assert await own.use("second") == Choice("second", "first")
    assert await own.roll_back() == Choice("first", "second")
    assert await own.use(None) == Choice(None, "first")


async def test_an_actor_that_starts_again_has_the_adapter_that_was_in_use(cache: Path, engine: LlamaCpp) -> None:
    await Adapters(engine, "kobold", cache).use("first")
    again = Adapters(engine, "kobold", cache)
    assert again.restore() is None
    assert again.choice == Choice("first", None)
    assert Adapters(engine, "bitnet", cache).restore() is None


async def test_a_lost_adapter_gives_its_place_to_the_one_before_it_and_says_so(cache: Path, engine: LlamaCpp) -> None:
    own = Adapters(engine, "kobold", cache)
    await own.use("first")
    await own.use("second")
    (adapters.folder(cache) / "second.gguf").unlink()
    again = Adapters(engine, "kobold", cache)
    assert "no adapter 'second'" in str(again.restore())
    assert again.choice == Choice("first", None)


async def test_an_unknown_adapter_changes_nothing_and_names_those_that_are_there(cache: Path, engine: LlamaCpp) -> None:
    own = Adapters(engine, "kobold", cache)
    await own.use("first")
    with pytest.raises(ModelError, match=r"first, second"):
        await own.use("third")
    assert own.choice == Choice("first", None)


async def test_an_engine_that_runs_elsewhere_cannot_swap(cache: Path) -> None:
    with pytest.raises(LayerError, match="elsewhere"):
        await Adapters(ScriptedEngine("x"), "kobold", cache).use("first")
