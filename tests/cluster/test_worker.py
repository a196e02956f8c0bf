"""A real worker at the real front door. The cluster's layers have actors, so the test itself asks the workers."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from worker_process import WorkerProcess, tls_before, write_certificate

from kitbash_ray import Kitbash, __version__
from kitbash_ray.calibration import load_calibration
from kitbash_ray.edge import EdgeMember
from kitbash_ray.gate import OPEN_PATHS
from kitbash_ray.redis_client import connect
from kitbash_ray.types import Answer, LayerResult, Query
from kitbash_ray.work import WorkStream
from tests.tasks import ended

from .harness import UNKNOWN, Cluster, eventually, stopped
from .test_kill import replicas

ME = {"worker": "pi", "version": __version__, "calibration": load_calibration().version}
#: What a path of the API's description may name.
PARAMETERS = {"layer": "kobold", "work_id": "1-0", "query_id": "q_0123456789abcdef"}


def made(cluster: Cluster, *arguments: str) -> str:
    """A new key."""
    done = cluster.command("key", "add", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def key(cluster: Cluster) -> Iterator[str]:
    yield made(cluster, "pi", "--worker", "bitnet")
    assert cluster.command("key", "remove", "pi").returncode == 0


@pytest.fixture
async def edge(cluster: Cluster) -> AsyncIterator[EdgeMember]:
    client = connect(cluster.settings.resolved_redis_url)
    member = EdgeMember(WorkStream(client, "bitnet"), 60.0)
    hearing = asyncio.ensure_future(member.hear())
    yield member
    await ended((hearing,))
    await client.aclose()


def start(cluster: Cluster, url: str, key: str, *arguments: str) -> WorkerProcess:
    settings = cluster.settings
    return WorkerProcess(
        *("--layer", "bitnet", "--front-door", url, *arguments),
        KITBASH_TOKEN=key,
        BITNET_MODEL=str(settings.bitnet_model),
        BITNET_MAX_TOKENS="8",
    )


async def is_seen(edge: EdgeMember, process: WorkerProcess) -> None:
    await asyncio.to_thread(process.wait_for, "connected to")
    await asyncio.wait_for(edge.first_worker(), 10)


async def ask(edge: EdgeMember) -> LayerResult:
    return await asyncio.wait_for(edge.answer(Query("What is ATP?")), 60)


async def test_a_worker_answers_through_the_front_door_and_is_listed(cluster: Cluster, key: str, edge: EdgeMember) -> None:
    with start(cluster, cluster.url, key, "--name", "kitchen") as process:
        await is_seen(edge, process)
        assert (await ask(edge)).outcome == "answered"
        [_, beat] = cluster.layers()["bitnet"]["replicas"]
        assert (beat["worker"], beat["pid"]) == ("kitchen", str(process.process.pid))
        assert "kitchen" in (await asyncio.to_thread(cluster.command, "status")).stdout
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0, process.said
    assert "replicas" not in cluster.layers()["bitnet"]


async def test_a_worker_answers_over_tls(cluster: Cluster, key: str, edge: EdgeMember, tmp_path: Path) -> None:
    certificate, secret = write_certificate(tmp_path)
    with (
        tls_before(cluster.settings.kitbash_port, certificate, secret) as url,
        start(cluster, url, key, "--ca", str(certificate)) as process,
    ):
        await is_seen(edge, process)
        assert (await ask(edge)).outcome == "answered"


async def test_when_a_layers_actor_is_gone_its_worker_answers_and_when_that_is_killed_the_actor_does(
    cluster: Cluster, client: Kitbash, key: str, edge: EdgeMember
) -> None:
    actor = cluster.pid("bitnet")
    with start(cluster, cluster.url, key) as process:
        await is_seen(edge, process)
        with stopped(actor):
            answer = await asyncio.to_thread(_answered_by, client, "bitnet")
            assert answer.path[1].outcome == "answered"
        process.signal(signal.SIGKILL)
        answer = await asyncio.to_thread(_answered_by, client, "bitnet")
        assert answer.path[1].outcome == "answered"


def _answered_by(client: Kitbash, layer: str) -> Answer:
    """An answer to whose path `layer` has given one."""

    def look() -> Answer | None:
        answer = client.ask(UNKNOWN)
        return answer if ("answered" in {step.outcome for step in answer.path if step.layer == layer}) else None

    found = eventually(look, 30, f"{layer} answers")
    assert found
    return found


async def test_a_worker_is_back_after_its_front_door_was_killed(cluster: Cluster, key: str, edge: EdgeMember) -> None:
    with start(cluster, cluster.url, key) as process:
        await is_seen(edge, process)
        for replica in replicas(cluster):
            replica.kill()
        await asyncio.to_thread(process.wait_for, "trying again")
        await asyncio.to_thread(process.wait_for, "connected to", times=2)
        assert (await ask(edge)).outcome == "answered"


async def test_a_claim_whose_client_is_gone_takes_no_work(cluster: Cluster, edge: EdgeMember) -> None:
    with cluster.http() as http:
        http.post("/v1/work/bitnet/heartbeat", json=ME).raise_for_status()
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/work/bitnet/claim", json={**ME, "worker": "gone"}, timeout=0.5)
        await asyncio.sleep(0.5)  # the front door hears of it through HAProxy
        asking = asyncio.ensure_future(edge.answer(Query("?")))
        reply = await asyncio.to_thread(http.post, "/v1/work/bitnet/claim", json={**ME, "wait_s": 1})
        assert reply.status_code == 200
        result = {"layer": "bitnet", "outcome": "answered", "text": "42"}
        http.post(f"/v1/work/bitnet/{reply.json()['id']}/result?worker=pi", json=result).raise_for_status()
        assert (await asking).text == "42"
        http.post("/v1/work/bitnet/heartbeat", json={**ME, "state": "leaving"}).raise_for_status()


def routes(stranger: httpx.Client) -> list[tuple[str, str]]:
    """Every method and path of the API's description, with some value for what a path leaves open."""
    paths: dict[str, dict[str, Any]] = stranger.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), re.sub(r"{(\w+)}", lambda found: PARAMETERS.get(found[1], "x"), path))
        for path, methods in paths.items()
        if path not in OPEN_PATHS
        for method in methods
    ]


def test_the_key_of_a_worker_opens_no_other_route(cluster: Cluster, stranger: httpx.Client, key: str) -> None:
    with cluster.http(headers={"Authorization": f"Bearer {key}"}) as http:
        found = routes(stranger)
        assert ("POST", "/v1/query") in found
        assert ("POST", "/v1/work/kobold/claim") in found
        more = [
            ("GET", "/"),
            ("GET", "//v1/layers"),
            ("GET", "/v1/work/bitnet"),
            ("POST", "/v1/work/bitnet%2F..%2Fkobold/claim"),
        ]
        for method, path in [*found, *more]:
            reply = http.request(method, path, json=ME)
            assert (reply.status_code, method, path) in ((403, method, path), (404, method, path)), reply.text
            assert reply.status_code == 403 or "%2F" in path
        refused = http.post("/v1/query", json={"query": "What is ATP?"})
        assert (
            refused.json()["error"]["message"]
            == "This is the key of a worker: it may serve the layer bitnet, and nothing else."
        )
        assert http.post("/v1/work/bitnet/claim", json={**ME, "wait_s": 0}).status_code == 204


def test_an_ordinary_key_serves_no_layer(cluster: Cluster) -> None:
    ordinary = made(cluster, "homework")
    with cluster.http(headers={"Authorization": f"Bearer {ordinary}"}) as http:
        assert http.get("/v1/layers").status_code == 200
        for route in ("claim", "heartbeat", "1-0/result"):
            reply = http.post(f"/v1/work/bitnet/{route}", json=ME)
            assert reply.status_code == 403
            assert "kitbash key add NAME --worker LAYER" in reply.json()["error"]["message"]
    assert cluster.command("key", "remove", "homework").returncode == 0
