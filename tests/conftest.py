"""Fixtures of every suite. Nothing here reads the developer's settings or talks to their Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from kitbash_ray.config import load_settings
from kitbash_ray.knowledge.embedder import Embeds, open_embedder
from kitbash_ray.knowledge.extractor import Extractor, open_extractor
from kitbash_ray.knowledge.verifier import Verifier, open_verifier
from kitbash_ray.tiny_model import write_tiny_gguf

#: Variables with these beginnings are settings, or could be mistaken for one.
SETTINGS = (
    "KITBASH_",
    "BITNET_",
    "KOBOLD_",
    "CARTRIDGE",
    "GRAIN_",
    "EMBEDDING_",
    "REDIS_",
    "DIAGNOSTIC_",
    "LOG_",
    "RAY_AUTH_",
    "HF_",
)

WriteCartridge = Callable[..., Path]

# pytest-xdist sets it, and a console that was made with it set keeps its width for ever.
os.environ.pop("COLUMNS", None)


def _isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith(SETTINGS):
            patch.delenv(name)
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    patch.chdir(folder)  # no .env and no kitbash.yaml here


@pytest.fixture(scope="session", autouse=True)
def _clean_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _isolate(patch, tmp_path_factory.mktemp("session"))
        yield


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def embedder() -> Embeds:
    """The real MiniLM, in the cache folder that the program itself uses, so it is converted once."""
    return open_embedder(load_settings())


@pytest.fixture(scope="session")
def verifier() -> Verifier:
    """The real one, like the embedder."""
    return open_verifier(load_settings())


@pytest.fixture(scope="session")
def extractor() -> Extractor:
    """The real one, like the embedder."""
    return open_extractor(load_settings())


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama that llama.cpp really loads and runs."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def library_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cartridges"
    folder.mkdir()
    return folder


@pytest.fixture
def write_cartridge(library_folder: Path) -> WriteCartridge:
    """Write `name` with facts given as (id, text, asks...); returns its folder."""

    def write(name: str, *facts: tuple[str, ...], faction: str = "general") -> Path:
        folder = library_folder / name
        folder.mkdir(exist_ok=True)
        (folder / "cartridge.toml").write_text(
            f'name = "{name}"\nversion = "1"\nfaction = "{faction}"\nlicence = "CC0"\ndescription = "test"\n'
        )
        entries = [
            {"id": key, "fact": text, "asks": list(asks) or [f"what is {key}", f"tell me about {key}"],
             "source": "a test", "level": "empirical"}
            for key, text, *asks in facts
        ]  # fmt: skip
        (folder / "facts.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
        return folder

    return write
