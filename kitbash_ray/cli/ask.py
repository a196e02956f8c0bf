"""`kitbash ask`: one question, or one per line of standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from kitbash_ray.cli import asker as askers
from kitbash_ray.cli import exits
from kitbash_ray.cli.console import output, start_log
from kitbash_ray.client import Kitbash
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.errors import ClientError, ConfigError, InvalidQuery
from kitbash_ray.render import answer_panel
from kitbash_ray.types import Answer, Faction, Query, encode

STANDARD_INPUT = "-"
HTTP_BAD_REQUEST = 400


def ask(
    question: list[str] = typer.Argument(
        ..., help="The question; `-` reads one per line from standard input.", show_default=False
    ),
    mode: askers.Mode | None = typer.Option(
        None,
        help="`redis`: the running cluster. `direct`: this process, without Ray and Redis. [default: the cluster if one runs]",
        show_default=False,
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, and nothing else, on standard output."),
    cartridges: Path | None = typer.Option(
        None, help="Folder of cartridges for --mode direct. [default: CARTRIDGES_DIR]", show_default=False
    ),
    cartridge: list[str] = typer.Option([], help="Answer only from this cartridge; may be repeated."),
    faction: list[str] = typer.Option(["general"], help="Answer from this faction: general, fiction, experiment."),
    max_error: float | None = typer.Option(
        None, min=0.001, max=0.999, help="Share of accepted answers that may be wrong.", show_default=False
    ),
    timeout: float | None = typer.Option(None, min=0.001, max=600, help="Seconds the answer may take.", show_default=False),
    later: bool = typer.Option(False, "--later", help="Queue it in the running cluster and print its id for `kitbash result`."),
) -> None:
    """Ask a question.

    kitbash ask "What is ATP?"

    kitbash ask --mode direct --json "How do I add a cartridge?"

    cat questions.txt | kitbash ask - > answers.jsonl
    """
    settings = load_settings(cartridges_dir=cartridges)
    start_log(settings)
    many = question == [STANDARD_INPUT]
    factions = _factions(faction)
    queries = (  # made one by one, because a question's time begins when it is made
        Query(text, factions=factions, cartridges=tuple(cartridge), max_error=max_error, deadline_s=timeout)
        for text in (_lines() if many else [" ".join(question)])
    )
    if later:
        _queue(queries, settings, elsewhere=mode == "direct" or cartridges is not None)
    elif _ask(queries, askers.open_asker(mode, settings, own_cartridges=cartridges is not None), as_json, many):
        raise typer.Exit(exits.FAILED)


def _ask(queries: Iterable[Query], asker: askers.Asker, as_json: bool, many: bool) -> bool:
    """Show the answers; whether one has failed in every layer."""
    failed = False
    try:
        for query in queries:
            answer = _answer(asker, query, many)
            failed |= answer.status == "failed"
            show_answer(answer, as_json or many)
    finally:
        asker.close()
    return failed


def _queue(queries: Iterable[Query], settings: Settings, *, elsewhere: bool) -> None:
    """Queue the questions and print their ids."""
    if elsewhere:
        raise ConfigError("--later works with a running cluster only, and with the cartridges that it has.")
    with Kitbash(settings=settings) as client:
        for query in map(askers.checked, queries):
            query_id = client.submit(
                query.text,
                factions=query.factions,
                cartridges=query.cartridges,
                max_error=query.max_error,
                timeout_s=query.deadline_s,
            )
            print(query_id, flush=True)


def _answer(asker: askers.Asker, query: Query, many: bool) -> Answer:
    try:
        return askers.ask(asker, query)
    except (InvalidQuery, ClientError) as error:
        if not many or (isinstance(error, ClientError) and error.status != HTTP_BAD_REQUEST):
            raise
        # One bad line of many gets its object, in its place, and the others their answers.
        return Answer(query.id, query.text[:200], "failed", reason=str(error))


def _lines() -> Iterator[str]:
    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", errors="replace").strip()
        if line:
            yield line


def _factions(names: list[str]) -> tuple[Faction, ...]:
    known: dict[str, Faction] = {"general": "general", "fiction": "fiction", "experiment": "experiment"}
    for name in names:
        if name not in known:
            raise InvalidQuery(f"There is no faction {name!r}: general, fiction and experiment are the ones.")
    return tuple(known[name] for name in names)


def show_answer(answer: Answer, as_json: bool) -> None:
    """Print an answer, or one JSON object."""
    if as_json:
        print(json.dumps(json.loads(encode(answer)), ensure_ascii=False), flush=True)
    else:
        output.print(answer_panel(answer))
