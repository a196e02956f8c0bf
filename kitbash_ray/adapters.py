"""LoRA adapters of a layer's model: files by name, which one is in use, and the one before it.

What is in use is written down, so an actor that is started again has it; an adapter that cannot
be loaded leaves the one before it in its place. Not here: how llama.cpp applies one (engines/llama_cpp.py).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec

from kitbash_ray.engines.gguf_header import is_gguf
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.errors import LayerError, ModelError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class Choice(msgspec.Struct, frozen=True):
    """The adapter in use and the one before it; None is the bare model."""

    current: str | None = None
    previous: str | None = None


def folder(cache_dir: Path) -> Path:
    return cache_dir / "adapters"


def names(cache_dir: Path) -> list[str]:
    """The adapters that are there."""
    return sorted(path.stem for path in folder(cache_dir).glob("*.gguf"))


def add(file: Path, name: str | None, cache_dir: Path) -> str:
    """Copy an adapter into the cache, where every layer of this device finds it. Returns its name.

    Raises ModelError when the file or the name is none.
    """
    name = name or file.stem
    if not NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name for an adapter: letters, digits, dots, dashes and underscores, up to 64.")
    if not file.is_file():
        raise ModelError(f"There is no adapter file {str(file)!r}.")
    if not is_gguf(file):
        raise ModelError(f"{str(file)!r} is no GGUF file; convert the adapter with llama.cpp's convert_lora_to_gguf.py.")
    target = folder(cache_dir) / f"{name}.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.copyfile(file, partial)
    partial.replace(target)
    return name


class Adapters:
    """The adapters of one layer's engine."""

    def __init__(self, engine: object, layer: str, cache_dir: Path) -> None:
        self._engine = engine
        self._cache_dir = cache_dir
        self._file = folder(cache_dir) / f"{layer}.json"
        self.choice = Choice()

    def restore(self) -> str | None:
        """Load what was in use, else what was before it, before anybody generates.

        Returns why the former could not be loaded, if it could not.
        """
        wanted, fault = self._read(), None
        for choice in (wanted, Choice(wanted.previous)):
            if not isinstance(self._engine, LlamaCpp) or choice.current is None:
                break
            try:
                self._engine.apply_adapter(self._path(choice.current))
            except ModelError as error:
                fault = fault or str(error)
            else:
                self.choice = choice
                break
        return fault

    async def use(self, name: str | None) -> Choice:
        """Swap to the adapter `name`, None for the bare model, between two generations.

        Raises ModelError when it is not there or cannot be loaded: then nothing has changed; LayerError when
        the engine cannot swap adapters.
        """
        if not isinstance(self._engine, LlamaCpp):
            raise LayerError("Adapters are swapped where the model runs, and this layer's engine is elsewhere.")
        await self._engine.use_adapter(self._path(name) if name else None)
        if name != self.choice.current:
            self.choice = Choice(name, self.choice.current)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_bytes(msgspec.json.encode(self.choice))
        return self.choice

    async def roll_back(self) -> Choice:
        """Swap to the one before."""
        return await self.use(self.choice.previous)

    def _path(self, name: str) -> Path:
        path = folder(self._cache_dir) / f"{name}.gguf"
        if not NAME.fullmatch(name) or not path.is_file():
            there = ", ".join(names(self._cache_dir)) or "none"
            raise ModelError(
                f"There is no adapter {name!r} on this device ({there}); add it with `kitbash models adapter add`."
            )
        return path

    def _read(self) -> Choice:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Choice)
        except (OSError, msgspec.MsgspecError):
            return Choice()
