"""`kitbash key`: keys for the programs and people that may ask, each with its own error budget."""

from __future__ import annotations

import typer
from rich import box
from rich.table import Table

from kitbash_ray.cli.console import errors, output
from kitbash_ray.config import load_settings
from kitbash_ray.keys import add_key, keys_file, read_keys, remove_key

app = typer.Typer(no_args_is_help=True, help="Keys for the programs and people that may ask, each with its own error budget.")
NAME = typer.Argument(..., help="Whose key it is.", show_default=False)


@app.command()
def add(
    name: str = NAME,
    max_error: float | None = typer.Option(
        None, min=0.001, max=0.999, help="Error budget of its questions. [default: KITBASH_MAX_ERROR]", show_default=False
    ),
) -> None:
    """Make a key and print it, this once. It is used like the token, as `Authorization: Bearer <key>`.

    kitbash key add homework --max-error 0.02
    """
    secret = add_key(keys_file(load_settings()), name, max_error)
    errors.print("Keep it: it is not shown again.")
    print(secret)


@app.command("list")
def list_() -> None:
    """List the keys."""
    table = Table("name", "error budget", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in read_keys(keys_file(load_settings())):
        table.add_row(key.name, "the deployment's" if key.max_error is None else f"{key.max_error:g}")
    output.print(table)


@app.command()
def remove(name: str = NAME) -> None:
    """Remove a key; from then on the front door refuses it."""
    remove_key(keys_file(load_settings()), name)
    output.print("removed")
