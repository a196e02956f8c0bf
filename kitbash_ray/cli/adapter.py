"""`kitbash models adapter`: LoRA adapters of layer 4's model, swapped while it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kitbash_ray import adapters
from kitbash_ray.cli.console import output
from kitbash_ray.client import Kitbash
from kitbash_ray.config import load_settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="LoRA adapters: add a file once, then swap at run time; questions under way end with the adapter they began with.",
)
Layer = Annotated[str, typer.Option("--layer", help="The layer whose model it is.")]


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A GGUF made by llama.cpp's convert_lora_to_gguf.py.")],
    name: Annotated[str | None, typer.Option("--name", help="How to call it. [default: the file's name]")] = None,
) -> None:
    """Copy an adapter to where the layers of this device find it.

    kitbash models adapter add house-style.gguf
    """
    added = adapters.add(file, name, load_settings().cache_dir)
    print(f"Added {added}. Use it: kitbash models adapter use {added}")


@app.command("list")
def list_adapters(layer: Layer = "kobold") -> None:
    """The adapters that are there; a star stands at the one in use."""
    with Kitbash() as client:
        _show(client.adapters(layer))


@app.command()
def use(name: Annotated[str, typer.Argument(help="One of `kitbash models adapter list`.")], layer: Layer = "kobold") -> None:
    """Swap to an adapter."""
    with Kitbash() as client:
        _show(client.use_adapter(name, layer))


@app.command()
def off(layer: Layer = "kobold") -> None:
    """Go back to the bare model."""
    with Kitbash() as client:
        _show(client.use_adapter(None, layer))


@app.command()
def rollback(layer: Layer = "kobold") -> None:
    """Go back to the adapter before the one in use."""
    with Kitbash() as client:
        _show(client.roll_back_adapter(layer))


def _show(told: dict[str, Any]) -> None:
    for name in [*told["names"], None]:
        mark = "*" if name == told["current"] else " "
        before = "  (before)" if name == told["previous"] and name != told["current"] else ""
        output.print(f"{mark} {name or 'no adapter'}{before}", highlight=False)
