"""The two consoles, and progress for anything that takes longer than a second."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sized
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kitbash_ray.config import Settings, no_color
from kitbash_ray.knowledge.vectors import Progress as Report

output = Console(no_color=no_color(), highlight=False)
errors = Console(stderr=True, no_color=no_color(), highlight=False)


@contextmanager
def progress_bar(what: str) -> Iterator[Report]:
    """A bar on standard error that appears with the first report."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield report


def count(things: int | Sized, noun: str) -> str:
    """`3 facts`, `1 fact`."""
    number = things if isinstance(things, int) else len(things)
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def start_log(settings: Settings) -> None:
    """Write a log file if LOG_TO_FILE says so."""
    if settings.log_to_file:
        logging.basicConfig(
            filename=settings.log_file,
            level=settings.diagnostic_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )
