"""`kitbash doctor`: what is wrong with this machine or its cluster, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import httpx
import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from kitbash_ray.cli import exits
from kitbash_ray.cli.console import errors, output
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.devices import Devices, cluster_settings, ray_redis, read_devices
from kitbash_ray.doctor import (
    Finding,
    Seen,
    judge,
    judge_devices,
    judge_resources,
    look,
    port_finding,
    ray_redis_finding,
    token_finding,
    wanted_resources,
)
from kitbash_ray.errors import ClusterError, ConfigError
from kitbash_ray.state import Running, read_record

READY_S = 5.0


def doctor(as_json: bool = typer.Option(False, "--json", help="Print one JSON object on standard output.")) -> None:
    """Look at this machine and at every node of its cluster; each finding has a remedy.

    Versions, ports, clocks, disks, Redis, Ray's token, and resources that no node has. Exit code 1 when something is wrong.
    """
    with errors.status("looking"):
        findings = list(examine())
    findings = [replace(finding, remedy="") if finding.ok else finding for finding in findings]
    ok = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, ensure_ascii=False))
    else:
        output.print(_table(findings))
    if not ok:
        raise typer.Exit(exits.FAILED)


def examine() -> Iterator[Finding]:
    """Every finding, those about this machine first."""
    settings, devices = load_settings(), None
    found = read_record(settings)
    if found and found.role != "alone":
        try:
            devices = read_devices()
            settings = cluster_settings(devices)
        except ConfigError as error:
            yield Finding("cluster.yaml", "here", False, str(error), "Run `ray up cluster.yaml` again.")
    here = look(settings)
    yield token_finding(here.node, needed=devices is not None)
    if found is None:
        yield Finding("cluster", here.node, True, "none runs here; `kitbash up` starts one")
        yield from judge(here, None, None)
        return
    yield from _ports(settings, found, devices, here.node)
    if found.role == "head":
        yield ray_redis_finding(here.node, ray_redis(settings))
    seen = None
    try:
        seen = _see(settings, found)
        yield Finding("ray", here.node, True, f"answers at {found.address}")
    except ClusterError as error:
        remedy = "Look into ray.log and keeper.log of the state folder; start again with `ray up cluster.yaml` or `kitbash up`."
        yield Finding("ray", here.node, False, str(error), remedy)
    yield from judge(here, seen, found)
    if seen:
        yield from judge_devices(devices.all if devices else (), seen)
        yield from judge_resources(wanted_resources(settings), seen, "cluster")


def _see(settings: Settings, found: Running) -> Seen:
    from actors import checkup

    return checkup.see(settings, found.address)


def _ports(settings: Settings, found: Running, devices: Devices | None, node: str) -> Iterator[Finding]:
    """Whether the ports of the head can be reached from here, and whether the front door answers."""
    if devices:
        head = devices.head.address
        remedy = f"Let the devices reach each other: no firewall may stand between this one and {head}."
        yield port_finding("port of Redis", node, settings.redis_host or head, settings.redis_port, remedy)
        yield port_finding("port of Ray", node, head, settings.kitbash_ray_port, remedy)
    try:
        health = httpx.get(f"{found.url}/health/ready", timeout=READY_S, trust_env=False).json()
        ok, what = health["status"] == "ok", health.get("reason", f"answers at {found.url}")
    except (httpx.HTTPError, ValueError, KeyError) as error:
        ok, what = False, f"{found.url}: {error}"
    yield Finding(
        "front door", node, ok, what, "See /tmp/ray/session_latest/logs/serve on the head; `kitbash status` has more."
    )


def _table(findings: list[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "check", "node", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]wrong[/]"
        cells = (finding.check, finding.node, finding.what, finding.remedy)
        table.add_row(mark, *(escape(cell) for cell in cells))
    return table
