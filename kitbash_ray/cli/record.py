"""`kitbash why`, `replay`, `feedback` and `report`: what the record of past questions tells."""

from __future__ import annotations

import json
import re
import time
from typing import Literal

import msgspec
import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from kitbash_ray.cli.console import count, output
from kitbash_ray.client import Kitbash
from kitbash_ray.config import load_settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.report import LayerReport, Report, report
from kitbash_ray.types import Event

QUERY_ID = typer.Argument(..., help="The id of a question, as in `kitbash ask --json` and `kitbash feed`.", show_default=False)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def why(
    query_id: str = QUERY_ID,
    evidence: bool = typer.Option(False, "--evidence", help="Also what each confidence was made of."),
) -> None:
    """Show how an answer came about: every decision with its rule, and what each layer said.

    kitbash why q_0123456789abcdef
    """
    with Kitbash(settings=load_settings()) as client:
        events = client.events(query_id)
    output.print(_story(events))
    last = next((event.answer for event in reversed(events) if event.answer), None)
    if last:
        output.print(f"{last.status}: [bold]{escape(last.answer or last.reason or '')}[/]")
        output.print(f"[dim]rule {last.policy}, calibration {last.calibration or 'none'}[/]")
    if evidence:
        for event in events:
            if event.result and event.result.evidence:
                output.print(_evidence(event))


def replay(
    query_id: str = QUERY_ID,
    policy: Literal["fixed", "calibrated"] = typer.Option("fixed", help="The policy to decide with."),
    max_error: float | None = typer.Option(
        None, min=0.001, max=0.999, help="Error budget. [default: KITBASH_MAX_ERROR]", show_default=False
    ),
) -> None:
    """Decide a past question anew with another policy, from what the layers said then.

    kitbash replay q_0123456789abcdef --policy fixed
    """
    from kitbash_ray.direct import open_calibration
    from kitbash_ray.policy import policy_named
    from kitbash_ray.replay import replay as decide_anew

    settings = load_settings(kitbash_max_error=max_error)
    with Kitbash(settings=settings) as client:
        events = client.events(query_id)
    found = decide_anew(events, policy_named(policy, open_calibration(settings)), settings.kitbash_max_error)
    table = Table("decision", "rule", "because", box=box.SIMPLE_HEAD, pad_edge=False)
    for decision in found.decisions:
        whom = ", ".join(decision.layers) or (decision.result.layer if decision.result else "")
        table.add_row(f"{decision.action} {whom}", decision.rule, escape(decision.reason))
    output.print(table)
    if found.unknown:
        output.print(f"[yellow]{' and '.join(found.unknown)} was not asked then, so the rest is not known.[/]")
    elif found.decisions[-1].result and found.decisions[-1].action == "accept":
        output.print(f"answered: [bold]{escape(found.decisions[-1].result.text or '')}[/]")
    then = next((event.answer for event in reversed(events) if event.answer), None)
    if then:
        output.print(f"[dim]then: {then.status} by {then.layer or 'nobody'} ({then.policy})[/]")


def feedback(
    query_id: str = QUERY_ID,
    verdict: Literal["right", "wrong"] = typer.Argument(..., help="What you think of the answer.", show_default=False),
) -> None:
    """Say whether an answer was right. `kitbash calibrate` learns from it, and `--check` watches it.

    kitbash feedback q_0123456789abcdef wrong
    """
    with Kitbash(settings=load_settings()) as client:
        client.feedback(query_id, verdict == "right")
    output.print("noted")


def show_report(
    since: str = typer.Option("0", help="How far back: `90m`, `24h`, `7d`; `0`: everything that the feed keeps."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on standard output."),
) -> None:
    """Report on live traffic: hit rate, confidence, latency and timeouts of each layer.

    kitbash report --since 24h
    """
    settings = load_settings()
    with Kitbash(settings=settings) as client:
        found = report(client.feed(_position(since), follow=False))
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
        return
    _show(found)
    if settings.diagnostic_level in ("warning", "error"):
        output.print(f"[yellow]DIAGNOSTIC_LEVEL={settings.diagnostic_level} keeps most events out of the feed.[/]")


def _show(found: Report) -> None:
    output.print(
        f"{count(found.queries, 'question')}: {found.answered} answered, {found.abstained} abstained, "
        f"{found.failed} failed, {found.cancelled} cancelled"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "asked", "hit rate", "sure, returned", "sure, escalated", "p50 ms", "p95 ms", "p99 ms", "timeouts"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in found.layers:
        table.add_row(*_cells(layer))
    if found.layers:
        output.print(table)
    if found.judged:
        output.print(
            f"{count(found.judged, 'answer')} judged, {found.wrong} wrong: with 95 % confidence between "
            f"{found.error_at_least:.1%} and {found.error_at_most:.1%} of such answers are"
        )


def _cells(layer: LayerReport) -> tuple[str, ...]:
    def sure(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return (
        layer.layer,
        str(layer.asked),
        f"{layer.hit_rate:.0%}",
        sure(layer.confidence_returned),
        sure(layer.confidence_escalated),
        f"{layer.p50_ms:.2f}",
        f"{layer.p95_ms:.2f}",
        f"{layer.p99_ms:.2f}",
        f"{layer.timeout_rate:.1%}",
    )


def _position(since: str) -> str:
    """The place in the feed from which to read: ids of the stream begin with milliseconds."""
    if since == "0":
        return since
    found = re.fullmatch(r"(\d{1,6})([smhd])", since)
    if not found:
        raise ConfigError(f"--since {since!r} is no time: write 90m, 24h or 7d.")
    return str(max(0, int((time.time() - int(found[1]) * SECONDS[found[2]]) * 1000)))


def _story(events: list[Event]) -> Table:
    table = Table("", "what", "ms", "why", box=box.SIMPLE_HEAD, pad_edge=False)
    for event in events:
        if event.query and event.kind == "query.received":
            table.add_row("asked", escape(event.query.text), "", "")
        elif event.kind == "layer.started":
            table.add_row("decided", f"ask {event.layer}", "", escape(event.reason or ""))
        elif event.result:
            sure = "" if event.result.confidence is None else f", {event.result.confidence:.3f} sure"
            agrees = "".join(f"; agrees {value:.2f} with {layer}" for layer, value in event.result.agrees)
            said = escape(f"{event.result.reason or ''}{agrees}")
            table.add_row(event.result.layer, f"{event.result.outcome}{sure}", f"{event.result.latency_ms:.2f}", said)
        elif event.kind == "query.judged":
            table.add_row("judged", "right" if event.right else "wrong", "", "")
        elif event.answer:
            table.add_row("decided", event.answer.status, f"{event.answer.latency_ms:.2f}", escape(event.answer.reason or ""))
    return table


def _evidence(event: Event) -> Table:
    from kitbash_ray.fitting import FEATURES_OF

    assert event.result  # whoever calls has looked
    table = Table(title=f"evidence of {event.result.layer}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("feature")
    table.add_column("value", justify="right")
    for name, value in zip(FEATURES_OF[event.result.layer], event.result.evidence, strict=False):
        table.add_row(name, f"{value:.3f}")
    return table
