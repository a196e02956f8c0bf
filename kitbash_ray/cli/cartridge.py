"""`kitbash cartridge`: make, check, index and look at what Kitbash knows.

Each command parses, calls the library and prints: results on stdout, progress and problems on
stderr. Not here: the format of cartridges (knowledge/cartridge.py) and turning a KitbashError
into one line, which the caller of `app` does.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kitbash_ray.cli import importing
from kitbash_ray.cli.console import count, output, progress_bar
from kitbash_ray.cli.importing import Cartridges
from kitbash_ray.config import load_settings
from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import FACTS, MANIFEST, NAME, PASSAGES, QUESTIONS, Cartridge, Fact, load_cartridge
from kitbash_ray.knowledge.checks import check_cartridge, compare
from kitbash_ray.knowledge.library import Library

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, check, index and look at cartridges: folders with the facts that Kitbash answers from.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
Name = Annotated[str, typer.Argument(help="Name of a cartridge, which is the name of its folder.")]


@app.command()
def new(name: Name, cartridges: Cartridges = None) -> None:
    """Make a folder with a commented example to edit.

    It holds cartridge.toml (what the cartridge is), facts.yaml (what it knows) and
    questions.jsonl, which measures it: a paraphrase asks for a fact in other words than its
    asks, a near_miss and an out_of_scope question must stay without an answer. Replace the
    two facts by your own and run `kitbash cartridge check` after each edit.

    Example: kitbash cartridge new home_lab
    """
    folder = _write_template(_library(cartridges).folder, name)
    print(f"Made {folder}. Edit {folder / FACTS}, then run: kitbash cartridge check {name}{_same_folder(cartridges)}")


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Cartridges to check; default: all.")] = None,
    cartridges: Cartridges = None,
) -> None:
    """Say everything that is wrong, by file and line.

    An error keeps a cartridge from being used: a missing source, a question that two facts
    claim, an expected fact that does not exist. A warning does not: facts, of any two cartridges,
    that seem to contradict or repeat each other, an ask that wants a number where the fact has
    none, a fact that has expired. Exits with 3 when there is an error, so that a script can stop there.

    Example: kitbash cartridge check home_lab
    """
    library = _library(cartridges)
    folders = _folders(library, names or [])
    findings = [finding for folder in folders for finding in check_cartridge(folder)]
    findings += compare(library, {folder.name for folder in folders})
    for finding in findings:
        print(finding)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(CartridgeError.exit_code)
    verdict = f"no error, {count(findings, 'warning')}" if findings else "no problem"
    facts = [fact for folder in folders for fact in load_cartridge(folder).facts]
    print(f"{count(folders, 'cartridge')}, {count(facts, 'fact')}: {verdict}")


@app.command()
def build(cartridges: Cartridges = None) -> None:
    """Make the indexes now instead of at the next start.

    Only new and edited sentences are embedded, so a second run takes no time. The first run
    also converts the embedding model.

    Example: kitbash cartridge build
    """
    from kitbash_ray.knowledge.index import open_builder

    started = time.perf_counter()
    settings = load_settings(cartridges_dir=cartridges)
    if not Library(settings.cartridges_dir).folders():
        raise CartridgeError(f"There is no cartridge in {settings.cartridges_dir}; `kitbash cartridge new` makes one.")
    builder = open_builder(settings)
    with progress_bar("indexing the cartridges") as progress:
        version = builder.build(progress)
    for problem in builder.problems:
        _complain(f"Left out: {problem}")
    print(f"Index {version} of {settings.cartridges_dir} is ready after {time.perf_counter() - started:.1f} s.")


@app.command("list")
def list_(cartridges: Cartridges = None, as_json: AsJson = False) -> None:
    """Show which cartridges there are.

    One that cannot be loaded is named on stderr with the reason.

    Example: kitbash cartridge list --json
    """
    contents = _library(cartridges).load()
    for problem in contents.problems:
        _complain(problem)
    rows = [_summary(cartridge) for cartridge in contents.cartridges]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        _print_table(("name", "version", "faction", "facts", "questions", "description"), [list(row.values()) for row in rows])


@app.command()
def show(
    name: Name,
    fact_id: Annotated[str | None, typer.Argument(help="One fact, with or without `NAME:` before it.")] = None,
    cartridges: Cartridges = None,
    as_json: AsJson = False,
) -> None:
    """Show the facts of a cartridge, or all there is to one fact.

    Example: kitbash cartridge show biochemistry glycolysis-net-yield
    """
    [folder] = _folders(_library(cartridges), [name])
    facts = load_cartridge(folder).facts
    if fact_id is None:
        _print_facts(facts, as_json)
    else:
        _print_fact(_find(facts, name, fact_id), as_json)


app.command("import")(importing.import_)
app.command("remove")(importing.remove)
app.command("propose")(importing.propose)


# Finding


def _library(cartridges: Path | None) -> Library:
    return Library(load_settings(cartridges_dir=cartridges).cartridges_dir)


def _folders(library: Library, names: Sequence[str]) -> list[Path]:
    """The folders of `names`, all when there is none; one that lost its cartridge.toml counts."""
    found = {path.name: path for path in library.folders()}
    found |= {path.parent.name: path.parent for file in (FACTS, PASSAGES) for path in library.folder.glob(f"*/{file}")}
    for name in names:
        if name not in found:
            raise CartridgeError(
                f"There is no cartridge {name!r} in {library.folder}; there are: {', '.join(sorted(found)) or 'none'}."
            )
    return [found[name] for name in dict.fromkeys(names or sorted(found))]


def _find(facts: Sequence[Fact], name: str, fact_id: str) -> Fact:
    wanted = f"{name}:{fact_id.removeprefix(name + ':')}"
    for fact in facts:
        if fact.id == wanted:
            return fact
    raise CartridgeError(f"There is no fact {wanted!r}; `kitbash cartridge show {name}` lists them.")


def _summary(cartridge: Cartridge) -> dict[str, Any]:
    manifest = cartridge.manifest
    return {
        "name": manifest.name, "version": manifest.version, "faction": manifest.faction,
        "facts": len(cartridge.facts), "questions": len(cartridge.questions), "description": manifest.description,
    }  # fmt: skip


# Printing


def _complain(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _same_folder(cartridges: Path | None) -> str:
    return f" --cartridges {shlex.quote(str(cartridges))}" if cartridges else ""


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*columns)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    output.print(table)


def _print_facts(facts: Sequence[Fact], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(fact) for fact in facts], ensure_ascii=False, indent=2, default=str))
    else:
        _print_table(
            ("id", "fact", "level", "asks"), [(fact.id, fact.text, fact.level or "", len(fact.asks)) for fact in facts]
        )


def _print_fact(fact: Fact, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(fact), ensure_ascii=False, indent=2, default=str))
        return
    print(fact.text)
    dates = [f"{word} {day}" for word, day in (("from", fact.valid_from), ("until", fact.valid_until)) if day]
    for label, value in (
        ("id", fact.id), ("faction", fact.faction), ("level", fact.level), ("section", fact.section),
        ("source", fact.source), ("valid", " ".join(dates)), ("file", f"{fact.file}:{fact.line}"),
    ):  # fmt: skip
        if value:
            print(f"  {label:<8} {value}")
    for ask in fact.asks:
        print(f"  asked as {ask}")


# The template of `new`


def _write_template(parent: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise CartridgeError(f"{name!r} is no cartridge name; use up to 64 of a-z, 0-9, - and _, with a letter or digit first.")
    folder = parent / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        for file, text in ((FACTS, _FACTS), (QUESTIONS, _QUESTIONS), (MANIFEST, _MANIFEST)):
            (folder / file).write_text(text.replace("NAME", name), encoding="utf-8", newline="\n")
    except FileExistsError as error:
        raise CartridgeError(f"{folder} exists already; choose another name.") from error
    except OSError as error:
        raise CartridgeError(f"{folder}: cannot be written: {error.strerror}.") from error
    return folder


_MANIFEST = """\
# What this cartridge is.

# The name of the folder.
name = "NAME"
# Raise it when the facts change.
version = "0.1.0"
# Who may hear it: "general" is asked by default, "fiction" (stories, invented worlds) and
# "experiment" (half-finished) only when a question asks for them.
faction = "general"
# What others may do with the text.
licence = "CC0-1.0"
# One sentence for `kitbash cartridge list`.
description = "The coffee corner: an example to replace."
"""

_FACTS = """\
# What this cartridge knows: one entry for each fact. Two examples, to replace.
# After each edit: kitbash cartridge check NAME   What makes a good fact: docs/cartridges.md

# The id stays the same for ever; letters, digits, dots, - and _.
- id: coffee-cleaning-day
  # The answer, word for word as it is given; it should make sense without the question.
  fact: "The coffee machine is cleaned on Fridays at 16:00."
  # Three or more ways in which people ask for it, as they really put it: short, long, from the other
  # side. Different words find more than the same words in another order. No two facts may share one.
  asks:
    - "When is the coffee machine cleaned?"
    - "On which day do we clean the coffee maker?"
    - "coffee machine cleaning schedule"
  # Where somebody can look it up; it is shown with the answer.
  source: "House rules, section 2"
  # How firmly it holds: axiomatic (by definition), empirical (measured or documented),
  # heuristic (a rule of thumb) or narrative (true in a story).
  level: empirical

- id: coffee-dose
  fact: "A double espresso takes about 18 grams of ground coffee."
  asks:
    - "How much ground coffee goes into a double espresso?"
    - "What is the coffee dose for a double shot?"
    - "grams of coffee double espresso"
  source: "House rules, section 3"
  level: heuristic
  # Optional: the days on which the fact holds, both included.
  valid_from: 2020-01-01
  # valid_until: 2030-12-31
"""

# JSON Lines has no comments; the help of `new` says what the three kinds are.
_QUESTIONS = """\
{"query": "Which weekday is the espresso machine washed out?", "expected": ["NAME:coffee-cleaning-day"], "kind": "paraphrase"}
{"query": "When is the dishwasher cleaned?", "expected": [], "kind": "near_miss"}
{"query": "Who wrote Hamlet?", "expected": [], "kind": "out_of_scope"}
"""
