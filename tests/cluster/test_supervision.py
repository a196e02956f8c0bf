"""What Kitbash says of its actors against what Ray says, and what Ray's metrics endpoint says of the questions asked."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kitbash_ray import Kitbash

from .harness import UNKNOWN, Cluster, eventually

#: Ray's name of a layer's actor, where it is another than the layer's.
ACTOR = {"grain": "grain_router"}
#: A killed actor is back within this; Ray's dashboard looks every few seconds.
AGREE_S = 30.0
#: A number is on the endpoint within this; a replica tells Ray every second, and Ray the endpoint every second (conftest.py).
SHOWN_S = 30.0
#: Numbers that did not change for this long are complete.
QUIET_S = 5.0


@pytest.fixture
def dashboard(cluster: Cluster) -> Iterator[httpx.Client]:
    """Ray's dashboard, by the routes that its pages use."""
    token = (cluster.settings.state_dir.parent / "ray_token").read_text()
    with httpx.Client(base_url=cluster.found.dashboard, headers={"Authorization": f"Bearer {token}"}, timeout=30) as connected:
        yield connected


def rays_actors(dashboard: httpx.Client) -> dict[str, tuple[int, str]]:
    """Process and host name of each living actor, by its name in Ray."""
    nodes = dashboard.get("/nodes", params={"view": "summary"}).raise_for_status().json()["data"]["summary"]
    hosts = {node["raylet"]["nodeId"]: node["hostname"] for node in nodes}
    told = dashboard.get("/api/v0/actors", params={"detail": True}).raise_for_status().json()["data"]["result"]["result"]
    return {actor["name"]: (actor["pid"], hosts[actor["node_id"]]) for actor in told if actor["state"] == "ALIVE"}


def where(beat: dict[str, Any]) -> tuple[int, str]:
    return int(beat["pid"]), beat["node"]


def assert_agreement(cluster: Cluster, dashboard: httpx.Client) -> None:
    alive, layers = rays_actors(dashboard), cluster.layers()
    assert {layer: where(beat) for layer, beat in layers.items()} == {layer: alive[ACTOR.get(layer, layer)] for layer in layers}
    assert {beat["state"] for beat in layers.values()} == {"ready"}
    with Kitbash(settings=cluster.settings) as client:
        replicas = [where(beat) for beat in client.replicas()]
    assert sorted(replicas) == sorted(at for name, at in alive.items() if "FrontDoor" in name)


def agree(cluster: Cluster, dashboard: httpx.Client) -> None:
    eventually(lambda: assert_agreement(cluster, dashboard) is None, AGREE_S, "the heartbeats and Ray's dashboard agree")


def test_the_heartbeats_and_rays_dashboard_name_the_same_processes(cluster: Cluster, dashboard: httpx.Client) -> None:
    agree(cluster, dashboard)


@pytest.mark.parametrize("layer", ["grain", "kobold"])
def test_they_agree_again_after_an_actor_was_killed(cluster: Cluster, dashboard: httpx.Client, layer: str) -> None:
    before = cluster.pid(layer)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: cluster.pid(layer) != before, AGREE_S, f"{layer} is back")
    agree(cluster, dashboard)


def test_the_replicas_are_listed_with_their_load(client: Kitbash) -> None:
    [replica] = eventually(lambda: [beat for beat in client.replicas() if beat["load"] == "0"], 5, "nothing is in flight")
    assert replica["state"] == "ready"
    assert replica["device"] == "device_b, device_c, gpu_1060"  # of one machine that is all devices


def test_the_status_shows_devices_and_replicas(cluster: Cluster, client: Kitbash) -> None:
    shown = cluster.command("status", COLUMNS="200").stdout
    for part in ("gpu_1060", "device_b", "device_c", client.replicas()[0]["pid"], cluster.found.metrics):
        assert part in shown
    told = json.loads(cluster.command("status", "--json").stdout)["replicas"]
    assert [where(beat) for beat in told] == [where(beat) for beat in client.replicas()]


def measured(cluster: Cluster) -> dict[tuple[str, str], float]:
    """What Ray's endpoint says: the sum of each sample of ours, by its name and its `layer` with status, outcome or the like."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(httpx.get(cluster.found.metrics, timeout=30).raise_for_status().text):
        for sample in family.samples:
            if sample.name.startswith("ray_kitbash_"):
                tags = " ".join(
                    sample.labels[tag] for tag in ("layer", "status", "outcome", "verdict", "le") if tag in sample.labels
                )
                key = sample.name.removeprefix("ray_"), tags
                found[key] = found.get(key, 0) + sample.value
    return found


def settled(cluster: Cluster) -> dict[tuple[str, str], float]:
    """The numbers once they stand still: those of all earlier questions have come."""
    seen, since = measured(cluster), time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        if (now := measured(cluster)) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > QUIET_S

    eventually(still, SHOWN_S, "the numbers stand still")
    return seen


def test_the_metrics_endpoint_counts_exactly_what_was_asked(cluster: Cluster, client: Kitbash) -> None:
    before = settled(cluster)
    known = [client.ask("What is ATP?") for _ in range(7)]
    unknown = [client.ask(UNKNOWN) for _ in range(2)]
    refused = client.ask(UNKNOWN, max_error=0.01)
    client.feedback(known[0].query_id, right=False)
    expected = {
        ("kitbash_queries_total", "grain answered"): 7,
        ("kitbash_queries_total", "kobold answered"): 2,
        ("kitbash_queries_total", "none abstained"): 1,
        ("kitbash_layer_results_total", "grain answered"): 10,
        ("kitbash_query_seconds_count", "grain"): 7,
        ("kitbash_query_seconds_count", "kobold"): 2,
        ("kitbash_query_seconds_bucket", "none +Inf"): 1,
        ("kitbash_layer_seconds_count", "grain"): 10,
        ("kitbash_layer_seconds_count", "kobold"): 3,
        ("kitbash_confidence_count", "grain"): 7,
        ("kitbash_feedback_total", "grain wrong"): 1,
    }
    assert (refused.status, {answer.layer for answer in unknown}) == ("abstained", {"kobold"})

    def grown() -> bool:
        now = measured(cluster)
        assert {key: now.get(key, 0) - before.get(key, 0) for key in expected} == expected
        return True

    eventually(grown, SHOWN_S, "the endpoint counts them")


def test_a_question_that_is_given_up_is_counted_as_cancelled(cluster: Cluster) -> None:
    key = ("kitbash_queries_total", "none cancelled")
    before = settled(cluster).get(key, 0)
    chat = {"model": "kitbash/kobold", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3000, "stream": True}
    with cluster.http() as http, http.stream("POST", "/v1/chat/completions", json=chat) as reply:
        next(reply.iter_lines())
    eventually(lambda: measured(cluster).get(key, 0) == before + 1, SHOWN_S, "it is counted")


def test_the_endpoint_tells_how_the_replica_is(cluster: Cluster) -> None:
    def told() -> bool:
        now = measured(cluster)
        gauges = ("kitbash_queries_in_flight", "kitbash_recorder_healthy", "kitbash_spool_bytes")
        assert [now[name, ""] for name in gauges] == [0, 1, 0]
        return True

    eventually(told, SHOWN_S, "the gauges are shown")
