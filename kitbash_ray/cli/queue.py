"""`kitbash queue` and `kitbash result`: questions to be answered later, and those that were given up."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from kitbash_ray.cli import exits
from kitbash_ray.cli.ask import show_answer
from kitbash_ray.cli.console import output
from kitbash_ray.client import Kitbash
from kitbash_ray.config import load_settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.types import DeadLetter, encode

app = typer.Typer(no_args_is_help=True, help="Questions that wait for an answer, and those that were given up.")
ID = typer.Argument(..., help="The question, by the id that `kitbash ask --later` printed.", show_default=False)
IDS = typer.Argument(None, help="The questions, by their ids.", show_default=False)
ALL = typer.Option(False, "--all", help="All that were given up.")


def result(
    query_id: str = ID,
    wait: bool = typer.Option(False, "--wait", help="Wait for the answer, however long it takes."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on standard output."),
) -> None:
    """Show the answer to a question that was queued.

    kitbash result q_0123456789abcdef --wait
    """
    with Kitbash(settings=load_settings()) as client:
        answer = client.result(query_id, wait=None if wait else 0)
    show_answer(answer, as_json)
    if answer.status == "failed":
        raise typer.Exit(exits.FAILED)


@app.command("list")
def list_(as_json: bool = typer.Option(False, "--json", help="Print one JSON object on standard output.")) -> None:
    """List the questions that were given up, and count the others."""
    with Kitbash(settings=load_settings()) as client:
        counts, letters = client.queue(), client.dead_letters()
    if as_json:
        print(json.dumps({**counts, "letters": json.loads(encode(letters))}, ensure_ascii=False))
        return
    output.print(queue_line(counts))
    if letters:
        output.print(_table(letters))


@app.command()
def requeue(query_ids: list[str] = IDS, every: bool = ALL) -> None:
    """Try questions again that were given up; they keep their ids.

    kitbash queue requeue --all
    """
    with Kitbash(settings=load_settings()) as client:
        for query_id in _named(client, query_ids, every):
            client.requeue(query_id)
            output.print(f"{query_id} is queued")


@app.command()
def drop(query_ids: list[str] = IDS, every: bool = ALL) -> None:
    """Forget questions that were given up."""
    with Kitbash(settings=load_settings()) as client:
        for query_id in _named(client, query_ids, every):
            client.drop(query_id)
            output.print(f"{query_id} is dropped")


def queue_line(counts: Mapping[str, int]) -> str:
    return f"{counts['waiting']:,} waiting, {counts['running']:,} running, {counts['dead']:,} dead"


def _named(client: Kitbash, query_ids: list[str] | None, every: bool) -> list[str]:
    if bool(query_ids) == every:
        raise ConfigError("Name the ids of the questions (`kitbash queue list` has them), or give --all.")
    return [letter.query_id for letter in client.dead_letters()] if every else list(query_ids or ())


def _table(letters: list[DeadLetter]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("given up", "id", "attempts", "question", "why"):
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for letter in letters:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.at))
        table.add_row(at, letter.query_id, str(letter.attempts), Text(letter.job.query.text), Text(letter.reason))
    return table
