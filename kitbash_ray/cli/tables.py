"""Tables that more than one command shows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from kitbash_ray import __version__
from kitbash_ray.types import Event

#: Members of a heartbeat that tables show.
WHERE = ("node", "device", "pid", "load", "since")
STATE_STYLE = {"ready": "green", "unavailable": "yellow", "off": "dim", "gone": "red"}


def layers_table(layers: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "layer", "state", *WHERE, "about"):
        table.add_column(column, overflow="fold")
    rows = ((each, number) for layer in layers for number, each in enumerate([layer, *layer.get("replicas", ())[1:]]))
    for layer, number in rows:
        state = str(layer.get("state", "gone"))
        about = [_degraded(layer), layer.get("reason") or layer.get("model") or _count(layer), _other_version(layer)]
        table.add_row(
            "" if number else str(layer["number"]),
            f"  {layer.get('worker') or layer['name']}" if number else str(layer["layer"]),
            f"[{STATE_STYLE.get(state, '')}]{state}[/]",
            *_where(layer),
            escape("; ".join(filter(None, about))),
        )
    return table


def _degraded(layer: Mapping[str, Any]) -> str:
    return f"degraded, breaker {layer['breaker']}: {layer['degraded']}" if "degraded" in layer else ""


def replicas_table(replicas: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("front door", "state", *WHERE, "about"):
        table.add_column(column, overflow="fold")
    for replica in replicas:
        state = str(replica["state"])
        name, shown = str(replica["replica"])[:8], f"[{STATE_STYLE.get(state, '')}]{state}[/]"
        table.add_row(name, shown, *_where(replica), _other_version(replica))
    return table


def _where(beat: Mapping[str, Any]) -> Iterable[str]:
    """What a heartbeat says of where its actor runs; empty where there is none."""
    shown = {**beat, "since": _moment(float(beat["since"]))} if "since" in beat else beat
    return (escape(str(shown.get(name, ""))) for name in WHERE)


def _moment(at: float) -> str:
    """The time of today, or else the day."""
    then = time.localtime(at)
    return time.strftime("%H:%M" if time.localtime()[:3] == then[:3] else "%d %b", then)


def events_table(events: Iterable[Event]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("time", "event", "layer", "what"):
        table.add_column(column, overflow="fold")
    for event in events:
        table.add_row(time.strftime("%H:%M:%S", time.localtime(event.at)), event.kind, event.layer or "", escape(about(event)))
    return table


def event_line(event: Event) -> str:
    """An event as one line of markup."""
    at = time.strftime("%H:%M:%S", time.localtime(event.at))
    layer = f"{event.layer or '':<10}"
    return f"[dim]{at}[/] [cyan]{event.query_id}[/] {event.kind:<15} [bold]{layer}[/] {escape(about(event))}"


def about(event: Event) -> str:
    """What an event says, in a few words."""
    if event.right is not None:
        return f"the answer is {'right' if event.right else 'wrong'}"
    if event.answer:
        return f"{event.answer.status} in {event.answer.latency_ms:.2f} ms"
    if event.result:
        sure = "" if event.result.confidence is None else f", confidence {event.result.confidence:.3f}"
        return f"{event.result.outcome}{sure} ({event.result.latency_ms:.2f} ms) {event.result.reason or ''}"
    if event.text is not None:
        return json.dumps(event.text, ensure_ascii=False)
    if event.kind == "query.received" and event.query:
        return event.query.text
    return event.reason or ""


def _count(layer: Mapping[str, Any]) -> str:
    return f"{layer['grains']} grains" if "grains" in layer else ""


def _other_version(beat: Mapping[str, Any]) -> str:
    """The version of Kitbash that an actor runs, if it is not this one."""
    version = beat.get("version", __version__)
    return "" if version == __version__ else f"Kitbash {version}"
