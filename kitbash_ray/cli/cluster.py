"""`kitbash up`, `down`, `status` and `feed`: the cluster on this machine."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import typer
from rich.markup import escape

from kitbash_ray.cli.console import errors, output, start_log
from kitbash_ray.cli.queue import queue_line
from kitbash_ray.cli.tables import event_line, layers_table, replicas_table
from kitbash_ray.client import Kitbash
from kitbash_ray.config import Settings, load_settings, ray_auth
from kitbash_ray.errors import ClusterError, NotRunning
from kitbash_ray.state import Running, read_record
from kitbash_ray.token import token_file
from kitbash_ray.types import encode


def up(
    kobold_model: str | None = typer.Option(
        None,
        help="Layer 4's model: a GGUF, or one that `kitbash models pull` fetched. [default: KOBOLD_MODEL]",
        show_default=False,
    ),
    bitnet_model: str | None = typer.Option(
        None, help="Layer 1's model instead of the student. [default: BITNET_MODEL]", show_default=False
    ),
) -> None:
    """Start Redis, Ray, the layers and the front door on this machine; once is enough.

    Ends with the address, the token and the dashboard. `kitbash down` ends it all.

    kitbash up --kobold-model ~/models/chat-model.gguf
    """
    settings = load_settings(kobold_model=kobold_model, bitnet_model=bitnet_model)
    start_log(settings)
    show_where(settings, start(settings))


def start(settings: Settings) -> Running:
    """Bring the cluster up, saying what happens."""
    from actors import cluster

    for name in settings.without_effect():
        errors.print(f"[yellow]{name} has no effect:[/] Ray starts and places the actors; remove it.")
    began = time.monotonic()
    with errors.status("starting") as spinner:

        def tell(what: str) -> None:
            spinner.update(what)
            errors.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {what}", soft_wrap=True)

        found = cluster.up(settings, tell)
    return found


def show_where(settings: Settings, found: Running) -> None:
    where = "in KITBASH_TOKEN" if settings.kitbash_token else f"in {token_file(settings)}"
    output.print(f"front door  {found.url}  (API description: {found.url}/docs)", soft_wrap=True)
    output.print(f"token       {where}", soft_wrap=True)
    output.print(f"dashboard   {found.dashboard}", soft_wrap=True)
    output.print(f"metrics     {found.metrics}", soft_wrap=True)
    if ray_auth() == "token":
        output.print("[dim]Ray and its dashboard ask for Ray's own token: `ray get-auth-token` prints it.[/]")
    else:
        output.print(
            "[dim]Ray's own ports are open to your network: `ray get-auth-token --generate`, "
            "`kitbash down` and `kitbash up` close them with a token.[/]",
            soft_wrap=True,
        )


def down() -> None:
    """End the cluster: no process and no port stays behind."""
    from actors import cluster

    settings = load_settings()
    if (found := read_record(settings)) and found.role != "alone":
        raise ClusterError("This is one device of several: `ray down cluster.yaml` ends all, `kitbash node stop` this one.")
    if cluster.down(settings, lambda what: errors.print(what)):
        output.print("down")
    else:
        output.print("nothing was running")


def status(as_json: bool = typer.Option(False, "--json", help="Print one JSON object on standard output.")) -> None:
    """Show the layers: state, device, process, load, and what is missing.

    Exit code 6 when no cluster answers.
    """
    settings = load_settings()
    found = read_record(settings)
    if found is None and not settings.kitbash_url:
        raise NotRunning("No cluster is running: start one with `kitbash up`.")
    with Kitbash(settings=settings) as client:
        layers, replicas, health, queue = client.layers(), client.replicas(), client.ready(), client.queue()
    if as_json:
        told = {
            "cluster": asdict(found) if found else None,
            "health": health,
            "layers": layers,
            "replicas": replicas,
            "queue": queue,
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    output.print(layers_table(layers))
    output.print(replicas_table(replicas))
    output.print(f"queue       {queue_line(queue)}")
    if found:
        show_where(settings, found)
        output.print(f"redis       {_redis(found, settings)}", soft_wrap=True)
        output.print(f"cartridges  {found.cartridges}", soft_wrap=True)
    if health["status"] != "ok":
        output.print(f"[yellow]degraded:[/] {health['reason']}")


def feed(
    after: str = typer.Option("$", help="`$`: from now on, `0`: from the oldest kept, or the id of an event."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line."),
) -> None:
    """Follow what happens to all questions, until Ctrl-C."""
    with Kitbash(settings=load_settings()) as client:
        for event in client.feed(after, interrupted=_waits):
            if as_json:
                print(encode(event).decode(), flush=True)
            else:
                output.print(event_line(event), soft_wrap=True)


def _waits(why: str) -> None:
    errors.print(f"[yellow]{escape(why)}[/] The feed goes on when it is back.", soft_wrap=True)


def _redis(found: Running, settings: Settings) -> Any:
    return f"private, {settings.resolved_redis_url}" if found.redis == "embedded" else found.redis
