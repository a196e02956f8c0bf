"""Answers as people look at them: a table in a terminal, HTML in a notebook."""

from __future__ import annotations

from html import escape

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape as plain
from rich.table import Table
from rich.text import Text

from kitbash_ray.types import Answer, Source, Step

STATUS_STYLE = {"answered": "bold green", "abstained": "bold yellow", "failed": "bold red", "cancelled": "dim"}
OUTCOME_STYLE = {"answered": "green", "abstained": "yellow", "failed": "red", "timeout": "red"}
#: A best guess that is less sure than this is about something else, and only misleads who reads it.
GUESS_FROM = 0.1
#: Sources shown of an answer; layer 2 hands on more than it cites.
SHOWN_SOURCES = 3


def percent(confidence: float | None) -> str:
    return "none stated" if confidence is None else f"{confidence:.1%}"


def best_guess(answer: Answer) -> str | None:
    """What to show where no layer was sure enough, None if there is nothing worth reading."""
    hopeless = answer.confidence is not None and answer.confidence < GUESS_FROM
    return None if hopeless else answer.candidate


def answer_panel(answer: Answer, *, title: str | None = None) -> RenderableType:
    """The answer with confidence and sources, and the path it took."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    if title:
        facts.add_row("", Text(title, style="dim italic"))
    facts.add_row("question", Text(answer.query, style="bold"))
    facts.add_row(answer.status, Text(_said(answer), style=STATUS_STYLE[answer.status]))
    if answer.status == "answered":
        facts.add_row("layer", f"{answer.layer}, confidence {percent(answer.confidence)}")
    elif guess := best_guess(answer):
        facts.add_row("best guess", plain(f"{guess} (confidence {percent(answer.confidence)}, not enough)"))
    if answer.degraded:
        facts.add_row("degraded", Text(", ".join(answer.degraded), style="yellow"))
    for number, source in enumerate(answer.sources[:SHOWN_SOURCES] if answer.status == "answered" else (), 1):
        facts.add_row(f"source {number}", plain(_cited(source)))
    return Group(facts, path_table(answer.path, answer.latency_ms), "")


def path_table(path: tuple[Step, ...], total_ms: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "outcome", "confidence", "ms", "why"):
        table.add_column(column, justify="right" if column in ("confidence", "ms") else "left", overflow="fold")
    for step in path:
        table.add_row(
            step.layer,
            Text(step.outcome, style=OUTCOME_STYLE[step.outcome]),
            "" if step.confidence is None else f"{step.confidence:.3f}",
            f"{step.latency_ms:.2f}",
            plain(step.reason or ""),
        )
    table.add_row("total", "", "", f"{total_ms:.2f}", "")
    return table


def answer_html(answer: Answer) -> str:
    """A self-contained fragment; every text is escaped."""
    rows = "".join(
        f"<tr><td>{escape(step.layer)}</td><td>{escape(step.outcome)}</td>"
        f"<td>{'' if step.confidence is None else f'{step.confidence:.3f}'}</td>"
        f"<td>{step.latency_ms:.2f}</td><td>{escape(step.reason or '')}</td></tr>"
        for step in answer.path
    )
    cited = answer.sources[:SHOWN_SOURCES] if answer.status == "answered" else ()
    sources = "".join(f"<li>{escape(_cited(source))}</li>" for source in cited)
    degraded = escape(", ".join(answer.degraded))
    guess = best_guess(answer)
    return (
        f"<div><p><b>{escape(answer.query)}</b></p><p>{escape(_said(answer))}</p>"
        f"{f'<p>Best guess, not sure enough: {escape(guess)}</p>' if guess else ''}"
        f"<p><small>{escape(answer.status)} by {escape(answer.layer or 'nobody')}, "
        f"confidence {percent(answer.confidence)}, {answer.latency_ms:.2f} ms</small></p>"
        f"{f'<p>Degraded: {degraded}</p>' if degraded else ''}"
        f"{f'<ol>{sources}</ol>' if sources else ''}"
        "<table><thead><tr><th>layer</th><th>outcome</th><th>confidence</th><th>ms</th><th>why</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _said(answer: Answer) -> str:
    if answer.answer is not None:
        return answer.answer
    return answer.reason or "no answer"


def _cited(source: Source) -> str:
    place = ", ".join(part for part in (source.reference, source.section) if part)
    return f"{source.fact_id} ({source.score:.2f}): {place}" if place else f"{source.fact_id} ({source.score:.2f})"
