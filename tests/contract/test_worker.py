"""Workers outside the cluster, against the front door's real routes over HTTP and a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from worker_process import WorkerProcess, tls_before, write_certificate

from kitbash_ray import __version__
from kitbash_ray.config import PROJECT
from kitbash_ray.types import Answer, LayerResult, encode

from .waiting import until
from .work_front_door import ME, TOKEN, FrontDoor

ATP = "ATP (adenosine triphosphate)"


@pytest.fixture
def start_worker(door: FrontDoor, tiny_gguf: Path) -> Any:
    """Start `kitbash worker` for layer 1 with a tiny model; all are ended at the end."""
    started: list[WorkerProcess] = []

    def start(*arguments: str, url: str = door.url, **settings: str) -> WorkerProcess:
        given = {"BITNET_MODEL": str(tiny_gguf), "BITNET_MAX_TOKENS": "8", **settings}
        given.setdefault("KITBASH_TOKEN", TOKEN)
        started.append(WorkerProcess("--layer", "bitnet", "--front-door", url, *arguments, **given))
        return started[-1]

    yield start
    for process in started:
        with process:
            pass


async def says(process: WorkerProcess, text: str, times: int = 1) -> None:
    await asyncio.to_thread(process.wait_for, text, times=times)


async def test_a_machine_without_ray_and_redis_serves_layer_1_with_its_own_key(
    door: FrontDoor, start_worker: Any, tmp_path: Path
) -> None:
    library = tmp_path / "cartridges"
    shutil.copytree(PROJECT / "cartridges" / "biochemistry", library / "biochemistry")
    process = start_worker("--name", "kitchen", KITBASH_TOKEN=door.key("bitnet"), CARTRIDGES_DIR=str(library), BITNET_MODEL="")
    await says(process, "connected to")
    await until(door.has_worker, "the worker is seen")
    answer = await door.ask("What is ATP?")
    assert answer.status == "answered", answer
    assert answer.answer
    assert answer.answer.startswith(ATP)
    assert answer.sources[0].cartridge == "biochemistry"
    beat = await door.layer()
    assert (beat["worker"], beat["state"], beat["version"]) == ("kitchen", "ready", __version__)
    assert beat["model"]
    # SIGTERM ends it, and it says goodbye
    process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0, process.said
    assert process.said.splitlines()[-1] == "stopped"
    assert (await door.layer())["state"] == "gone"


async def test_a_layer_without_actors_is_off_until_its_first_worker_comes(door: FrontDoor) -> None:
    assert (await door.layer())["state"] == "off"
    assert (await door.ask("Hello")).path == ()
    async with door.http() as http:
        await http.post("/v1/work/bitnet/heartbeat", json=ME)
        await until(door.has_worker, "the worker is seen")
        await http.post("/v1/work/bitnet/heartbeat", json={**ME, "state": "leaving"})
    assert (await door.layer())["state"] == "gone"
    assert (await door.layer("kobold"))["state"] == "off"


async def test_over_tls_the_certificate_has_to_be_known(door: FrontDoor, start_worker: Any, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    with tls_before(door.port, certificate, key) as url:
        stranger = start_worker(url=url)
        await says(stranger, "name its certificate with --ca; trying again")
        process = start_worker("--ca", str(certificate), url=url)
        await says(process, "connected to https://")
        await until(door.has_worker, "the worker is seen")
        assert (await door.ask("Hello")).status == "answered"
        assert "connected" not in stranger.said
        process.signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait) == 0


async def test_a_worker_killed_in_the_middle_costs_its_lease_and_not_the_answer(door: FrontDoor, start_worker: Any) -> None:
    dying = start_worker("--name", "dying")
    await says(dying, "connected")
    await until(door.has_worker, "the worker is seen")
    dying.signal(signal.SIGSTOP)  # it has a claim open, and will do nothing with what comes
    asking = asyncio.ensure_future(door.ask("Hello"))
    await until(lambda: _pending(door), "it has the question")
    async with door.http() as http:
        other = asyncio.ensure_future(_beating(http))
        dying.signal(signal.SIGKILL)
        work = (await http.post("/v1/work/bitnet/claim", json=ME)).json()
        result = encode(LayerResult("bitnet", "answered", text="42"))
        assert (await http.post(f"/v1/work/bitnet/{work['id']}/result?worker=pi", content=result)).status_code == 200
        assert (await asyncio.wait_for(asking, 5)).answer == "42"
        await until(lambda: _names(door, ["pi"]), "the dead one is listed no more")
        other.cancel()


async def _beating(http: httpx.AsyncClient) -> None:
    """Another worker lives."""
    while True:
        await http.post("/v1/work/bitnet/heartbeat", json=ME)
        await asyncio.sleep(0.2)


async def test_when_the_only_worker_is_killed_the_layer_fails_long_before_its_timeout(
    door: FrontDoor, start_worker: Any
) -> None:
    process = start_worker()
    await says(process, "connected")
    await until(door.has_worker, "the worker is seen")
    process.signal(signal.SIGSTOP)
    asking = asyncio.ensure_future(door.ask("Hello"))
    await until(lambda: _pending(door), "it has the question")
    process.signal(signal.SIGKILL)
    answer = await asyncio.wait_for(asking, 15)
    assert [step.outcome for step in answer.path] == ["failed"]
    assert "no worker of bitnet is connected" in str(answer.path[0].reason)
    assert "bitnet" in (await door.ask("Hello")).degraded


async def _pending(door: FrontDoor) -> bool:
    found = await door.orchestrator.blackboard._redis.xpending("kitbash:work:bitnet", "workers")
    return bool(found["pending"])


async def _names(door: FrontDoor, expected: list[str]) -> bool:
    layer = await door.layer()
    return [beat["worker"] for beat in layer.get("replicas", [layer])] == expected


async def test_a_worker_whose_front_door_goes_away_is_back_when_that_is(door: FrontDoor, start_worker: Any) -> None:
    process = start_worker()
    await says(process, "connected to")
    await door.stop()
    await says(process, "trying again")
    await door.start()
    await says(process, "connected to", times=2)
    await until(door.has_worker, "the worker is seen")
    assert (await door.ask("Hello")).status == "answered"
    assert process.said.count("trying again") == 1


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"KITBASH_TOKEN": "kb_no-key-of-anybody"}, 7, "A token is needed"),
        ({"BITNET_MODEL": "/nowhere.gguf"}, 4, "/nowhere.gguf"),
    ],
)
async def test_what_no_second_attempt_can_cure_ends_the_worker_with_one_sentence(
    start_worker: Any, changes: dict[str, str], code: int, said: str
) -> None:
    process = start_worker(**changes)
    assert await asyncio.to_thread(process.wait, 60) == code, process.said
    assert said in process.said
    assert "Traceback" not in process.said


async def test_the_key_of_another_layer_is_refused_with_its_reason(door: FrontDoor, start_worker: Any) -> None:
    process = start_worker(KITBASH_TOKEN=door.key("kobold"))
    assert await asyncio.to_thread(process.wait, 60) == 7, process.said
    assert "it may serve the layer kobold, and nothing else" in process.said


@pytest.mark.parametrize("path", ["claim", "heartbeat"])
@pytest.mark.parametrize(
    ("change", "said"),
    [({"version": "0.0.9"}, "install the same on both"), ({"calibration": "mine"}, "KITBASH_CALIBRATION")],
)
async def test_a_worker_of_another_version_or_calibration_gets_no_work(
    door: FrontDoor, path: str, change: dict[str, str], said: str
) -> None:
    async with door.http() as http:
        reply = await http.post(f"/v1/work/bitnet/{path}", json={**ME, **change})
    assert reply.status_code == 409
    assert said in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("bitnet/claim", {}),
        ("bitnet/claim", {**ME, "worker": "../kobold:pi"}),
        ("bitnet/claim", {**ME, "wait_s": 3600}),
        ("bitnet/heartbeat", {**ME, "working": ["*"]}),
        ("bitnet/heartbeat", {**ME, "state": "king"}),
        ("grain/claim", ME),
    ],
)
async def test_a_malformed_request_is_refused_with_one_sentence(door: FrontDoor, path: str, body: Any) -> None:
    async with door.http() as http:
        reply = await http.post(f"/v1/work/{path}", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


async def claimed(door: FrontDoor, http: httpx.AsyncClient) -> tuple[asyncio.Task[Answer], dict[str, Any]]:
    """A question, and the work that it became."""
    await http.post("/v1/work/bitnet/heartbeat", json=ME)
    await until(door.has_worker, "the worker is seen")
    asking = asyncio.ensure_future(door.ask("What is ATP?"))
    reply = await http.post("/v1/work/bitnet/claim", json=ME)
    assert reply.status_code == 200
    return asking, reply.json()


async def test_a_malformed_result_is_refused_and_nobody_waits_for_a_better_one(door: FrontDoor) -> None:
    async with door.http() as http:
        asking, work = await claimed(door, http)
        forged = encode(LayerResult("bitnet", "answered", text="sure", confidence=7.0))
        reply = await http.post(f"/v1/work/bitnet/{work['id']}/result?worker=pi", content=forged)
        assert reply.status_code == 400
        assert "confidence" in reply.json()["error"]["message"]
        answer = await asyncio.wait_for(asking, 5)
    assert answer.path[0].outcome == "failed"
    assert "worker pi is broken" in str(answer.path[0].reason)


async def test_only_whoever_has_the_work_may_answer_it(door: FrontDoor) -> None:
    result = encode(LayerResult("bitnet", "answered", text="42", confidence=0.99))
    async with door.http() as http:
        asking, work = await claimed(door, http)
        path = f"/v1/work/bitnet/{work['id']}/result"
        assert (await http.post(f"{path}?worker=other", content=result)).status_code == 409
        assert (await http.post(path, content=result)).status_code == 409
        assert (await http.post("/v1/work/bitnet/1-*/result?worker=pi", content=result)).status_code in (400, 409)
        assert (await http.post(f"{path}?worker=pi", content=result)).status_code == 200
        assert (await http.post(f"{path}?worker=pi", content=result)).status_code == 409
    answer = await asking
    assert (answer.answer, answer.confidence) == ("42", 0.99)


async def test_without_work_a_claim_ends_empty_and_one_whose_client_is_gone_takes_nothing(door: FrontDoor) -> None:
    async with door.http() as http:
        assert (await http.post("/v1/work/bitnet/claim", json={**ME, "wait_s": 0.05})).status_code == 204
        await http.post("/v1/work/bitnet/heartbeat", json={**ME, "worker": "gone"})
        gone = asyncio.ensure_future(http.post("/v1/work/bitnet/claim", json={**ME, "worker": "gone"}))
        await asyncio.sleep(0.2)
        gone.cancel()
    await asyncio.sleep(0.2)  # the connection is closed by now
    async with door.http() as http:
        asking, _ = await claimed(door, http)
    asking.cancel()


async def test_a_worker_that_asks_anew_ends_its_earlier_claim(door: FrontDoor) -> None:
    async with door.http() as http:
        await http.post("/v1/work/bitnet/heartbeat", json=ME)
        earlier = asyncio.ensure_future(http.post("/v1/work/bitnet/claim", json=ME))
        while not earlier.done():
            await asyncio.wait((earlier,), timeout=0.2)
            assert (await http.post("/v1/work/bitnet/claim", json={**ME, "wait_s": 0})).status_code == 204
        assert earlier.result().status_code == 204
