"""`kitbash models`: get GGUF files for layers 1 and 4, and see and remove those that are there.

The work is done in kitbash_ray/models.py; here it is asked for and told.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from kitbash_ray import models
from kitbash_ray.cli import adapter
from kitbash_ray.cli.console import errors, output
from kitbash_ray.config import load_settings
from kitbash_ray.download import Report
from kitbash_ray.engines.gguf_header import Header

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Get language models for layers 1 and 4 from the Hugging Face hub, and look at those that are there.",
)
app.add_typer(adapter.app, name="adapter")

EXAMPLE = "bartowski/Qwen2.5-0.5B-Instruct-GGUF/Qwen2.5-0.5B-Instruct-Q4_K_M.gguf"


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(metavar="OWNER/NAME/FILE.gguf", help="A file of a repository of the hub, or its https:// address.")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of the repository; default: the newest.")
    ] = None,
) -> None:
    """Download a model, check it, and say how to use it.

    Interrupted or cut off, the same command goes on where it stopped. The SHA-256 is compared with the hub's. Of a model
    in several parts all are pulled. HF_TOKEN (for gated repositories) and HF_ENDPOINT (a mirror) are honoured.

    Example: kitbash models pull bartowski/Qwen2.5-0.5B-Instruct-GGUF/Qwen2.5-0.5B-Instruct-Q4_K_M.gguf
    """
    source = models.read_source(model, revision)
    try:
        with _download_bar() as report:
            pulled = models.pull(source, load_settings().cache_dir, report, waiting=_tell_waiting)
    except KeyboardInterrupt:
        errors.print("Stopped; the same command goes on from here.")
        raise
    done = "Pulled" if pulled.fresh else "Already here:"
    print(f"{done} {source.name} ({decimal(pulled.size)}).")
    print("Layer 4 uses it after:\n")
    print(f"  export KOBOLD_MODEL={shlex.quote(str(pulled.path))}\n  kitbash down\n  kitbash up\n")
    print("BITNET_MODEL is the same for layer 1.")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False) -> None:
    """Show the models that were pulled.

    One whose pull was interrupted is named on stderr.

    Example: kitbash models list --json
    """
    found = models.installed(load_settings().cache_dir)
    rows = [_row(model) for model in found if model.whole]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    elif rows:
        _print_models(rows)
    elif not found:
        errors.print(f"No model yet. One to begin with (0.4 GB): kitbash models pull {EXAMPLE}", soft_wrap=True)
    for model in found:
        if not model.whole:
            errors.print(
                f"[yellow]unfinished:[/] {escape(model.name)}, {decimal(model.size)} so far; pull it again to go on, or remove it",
                soft_wrap=True,
            )


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A model as `kitbash models list` names it, or its file name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model from this machine, or what there is of an interrupted pull.

    Example: kitbash models remove Qwen2.5-0.5B-Instruct-Q4_K_M.gguf
    """
    cache = load_settings().cache_dir
    model = models.find(name, cache)
    if not yes:
        typer.confirm(f"Delete {model.name} ({decimal(model.size)})?", abort=True, err=True)
    models.remove(model.name, cache)
    print(f"Removed {model.name} ({decimal(model.size)}).")


def _tell_waiting() -> None:
    errors.print("Another process is pulling this model; waiting for it.")


@contextmanager
def _download_bar() -> Iterator[Report]:
    """A bar on standard error with speed and time left; one for each file and each check of it."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=errors, transient=True)
    task = bar.add_task("", total=None)
    current = ""

    def report(what: str, done: int, total: int | None) -> None:
        nonlocal current
        if what != current:  # a new start, so that what was there before does not count as speed
            bar.start()
            bar.reset(task, description=what, completed=done, total=total)
            current = what
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if current:  # a bar that never started would leave an empty line
            bar.stop()


def _row(model: models.Model) -> dict[str, Any]:
    header = asdict(model.header) if model.header else {**asdict(Header()), "architecture": "damaged"}
    return {"name": model.name, "size": model.size, **header, "path": str(model.path)}


def _print_models(rows: list[dict[str, Any]]) -> None:
    """Three lines each: names and paths are too long for the columns of a table."""
    for row in rows:
        facts = [decimal(row["size"]), row["architecture"], row["quantization"]]
        facts.append(f"context {row['context']:,}" if row["context"] else "")
        output.print(f"[bold]{escape(row['name'])}[/]", soft_wrap=True)
        output.print(escape(f"  {'   '.join(filter(None, facts))}\n  {_short(row['path'])}"), soft_wrap=True)


def _short(path: str) -> str:
    """`~/...` where that is shorter."""
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if path.startswith(home + "/") else path
