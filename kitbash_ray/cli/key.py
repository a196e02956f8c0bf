"""`kitbash key`: keys for the programs and people that may ask, each with its own error budget, and for workers."""

from __future__ import annotations

import typer
from rich import box
from rich.table import Table

from kitbash_ray.cli.console import errors, output
from kitbash_ray.config import load_settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.keys import add_key, keys_file, read_keys, remove_key
from kitbash_ray.work_types import ServedLayer

app = typer.Typer(no_args_is_help=True, help="Keys for the programs and people that may ask, each with its own error budget.")
NAME = typer.Argument(..., help="Whose key it is.", show_default=False)


@app.command()
def add(
    name: str = NAME,
    max_error: float | None = typer.Option(
        None, min=0.001, max=0.999, help="Error budget of its questions. [default: KITBASH_MAX_ERROR]", show_default=False
    ),
    worker: ServedLayer | None = typer.Option(
        None, help="The layer that it may serve with `kitbash worker`; it can do nothing else.", show_default=False
    ),
) -> None:
    """Make a key and print it, this once. It is used like the token, as `Authorization: Bearer <key>`.

    kitbash key add homework --max-error 0.02

    kitbash key add kitchen-pi --worker bitnet
    """
    if worker and max_error is not None:
        raise ConfigError("A worker asks no questions: leave --max-error or --worker out.")
    secret = add_key(keys_file(load_settings()), name, max_error, worker)
    errors.print("Keep it: it is not shown again.")
    print(secret)


@app.command("list")
def list_() -> None:
    """List the keys."""
    table = Table("name", "may", "error budget", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in read_keys(keys_file(load_settings())):
        budget = "the deployment's" if key.max_error is None else f"{key.max_error:g}"
        table.add_row(key.name, *((f"serve {key.worker}", "") if key.worker else ("ask", budget)))
    output.print(table)


@app.command()
def remove(name: str = NAME) -> None:
    """Remove a key; from then on the front door refuses it."""
    remove_key(keys_file(load_settings()), name)
    output.print("removed")
