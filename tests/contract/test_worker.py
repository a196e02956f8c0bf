"""Workers outside the cluster, against the front door's real routes over HTTP and a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis
from worker_process import WorkerProcess, tls_before, write_certificate

from actors.frontdoor import with_workers
from actors.orchestrator import Orchestrator
from kitbash_ray import __version__, worker
from kitbash_ray.blackboard import Blackboard
from kitbash_ray.calibration import load_calibration
from kitbash_ray.cascade import Cascade
from kitbash_ray.config import PROJECT, load_settings
from kitbash_ray.errors import ClientError
from kitbash_ray.feed import Feed
from kitbash_ray.keys import add_key, keys_file
from kitbash_ray.policy import Calibrated
from kitbash_ray.redis_client import connect
from kitbash_ray.replicas import StreamingReplicas
from kitbash_ray.testing import EchoLayer, ScriptedLayer, SlowLayer
from kitbash_ray.types import Answer, Layer, LayerResult, Query, encode
from kitbash_ray.work_types import WorkerIn
from kitbash_ray.worker import Door, Worker
from serve_app import build_http

TOKEN = "the-token-of-this-test"
NOTHING = LayerResult("grain", "abstained", reason="nothing near")
CALIBRATION = load_calibration().version
ME = {"worker": "pi", "version": __version__, "calibration": CALIBRATION}
ATP = "ATP (adenosine triphosphate)"


class FrontDoor:
    """The routes of serve_app on a port of their own, with layers that only workers do. It can be stopped and started."""

    def __init__(self, folder: Path, redis_url: str, recorder: Any, layers: tuple[str, ...]) -> None:
        self.settings = load_settings(redis_url=redis_url, kitbash_state_dir=folder, bitnet_timeout=30_000)
        self._redis = connect(redis_url)
        cascade = Cascade(
            [ScriptedLayer("grain", NOTHING)], Calibrated(load_calibration()), timeouts_s=dict.fromkeys(layers, 30.0)
        )
        self.orchestrator = Orchestrator(cascade, recorder, Blackboard(self._redis), Feed(self._redis))
        self._app = build_http(self.orchestrator, self.settings, TOKEN)
        self._socket = _bound(0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._tasks = [
            asyncio.ensure_future(with_workers(self.settings, cascade, StreamingReplicas(name, []))) for name in layers
        ]

    def key(self, layer: str, name: str = "pi") -> str:
        return add_key(keys_file(self.settings), name, None, layer)

    def http(self, key: str = TOKEN) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False)

    async def start(self) -> None:
        if self._socket.fileno() < 0:
            self._socket = _bound(self.port)
        self._server = uvicorn.Server(uvicorn.Config(self._app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        self._serving = asyncio.ensure_future(self._server.serve([self._socket]))
        await until(lambda: self._server.started, "the front door is open")

    async def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        await asyncio.wait((self._serving,))
        self._socket.close()

    async def close(self) -> None:
        await self.stop()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._redis.aclose()

    async def ask(self, text: str, layer: str = "bitnet") -> Answer:
        return await self.orchestrator.ask(Query(text, layers=(layer,)))

    async def has_worker(self) -> bool:
        return bool((await self.layer())["state"] == "ready")

    async def layer(self, name: str = "bitnet") -> dict[str, Any]:
        async with self.http() as http:
            layers = (await http.get("/v1/layers")).json()
        return next(layer for layer in layers if layer["layer"] == name)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


@pytest.fixture
async def door(redis: Redis, redis_url: str, open_recorder: Any, tmp_path: Path) -> AsyncIterator[FrontDoor]:
    found = FrontDoor(tmp_path / "front", redis_url, open_recorder(redis_url), ("bitnet", "kobold"))
    await found.start()
    yield found
    await found.close()


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


async def until(look: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """The first true value of `look`, which may have to be awaited."""
    for _ in range(int(seconds / 0.02)):
        found = look()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")


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


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.05)


def open_worker(door: FrontDoor, layer: Layer) -> Worker:
    """A worker in this process, whose layer a test has in its hands."""
    return Worker(layer, Door(door.url, TOKEN, layer.name), WorkerIn(**ME), lambda: "", lambda _: None)


@pytest.mark.usefixtures("fast")
async def test_a_worker_gives_up_a_question_that_is_called_off_and_takes_the_next(door: FrontDoor) -> None:
    slow = SlowLayer("bitnet")
    serving = open_worker(door, slow)
    running = asyncio.ensure_future(serving.run())
    await until(door.has_worker, "the worker is seen")
    asking = asyncio.ensure_future(door.ask("first"))
    await asyncio.wait_for(slow.started.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(slow.cancelled.wait(), 10)
    slow.release.set()
    assert (await asyncio.wait_for(door.ask("second"), 10)).answer == "at last"
    serving.stop()
    await asyncio.wait_for(running, 10)


@pytest.mark.usefixtures("fast")
async def test_a_worker_that_is_told_to_stop_ends_after_the_question_at_hand(door: FrontDoor) -> None:
    slow = SlowLayer("bitnet")
    serving = open_worker(door, slow)
    running = asyncio.ensure_future(serving.run())
    await until(door.has_worker, "the worker is seen")
    asking = asyncio.ensure_future(door.ask("one"))
    await asyncio.wait_for(slow.started.wait(), 10)
    serving.stop()
    assert not running.done()
    slow.release.set()
    await asyncio.wait_for(running, 10)
    assert (await asking).answer == "at last"
    assert not await door.has_worker()


@pytest.mark.usefixtures("fast")
async def test_an_answer_made_while_the_front_door_is_away_is_handed_in_when_it_is_back(door: FrontDoor) -> None:
    slow = SlowLayer("bitnet")
    serving = open_worker(door, slow)
    running = asyncio.ensure_future(serving.run())
    await until(door.has_worker, "the worker is seen")
    asking = asyncio.ensure_future(door.ask("one"))
    await asyncio.wait_for(slow.started.wait(), 10)
    await door.stop()
    slow.release.set()
    await door.start()
    assert (await asyncio.wait_for(asking, 20)).answer == "at last"
    serving.stop()
    await asyncio.wait_for(running, 10)


class Cable:
    """A way to the front door that can be cut: what was connected hangs for ever, and nothing new gets through until it is mended."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mended = asyncio.Event()
        self.mended.set()
        self._sides: list[asyncio.Task[None]] = []

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self.mended.clear()
        for side in self._sides:
            side.cancel()

    def close(self) -> None:
        self._server.close()
        for side in self._sides:
            side.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.mended.wait()
        inner = await asyncio.open_connection("127.0.0.1", self.port)
        for source, sink in ((reader, inner[1]), (inner[0], writer)):
            self._sides.append(asyncio.ensure_future(self._copy(source, sink)))

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
            sink.close()


@pytest.mark.usefixtures("fast")
async def test_after_a_cut_line_is_mended_the_worker_gets_questions_although_its_old_claim_still_hangs(
    door: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "REPLY_S", 0.5)
    cable = Cable(door.port)
    told: list[str] = []
    serving = Worker(EchoLayer("bitnet"), Door(await cable.open(), TOKEN, "bitnet"), WorkerIn(**ME), lambda: "", told.append)
    running = asyncio.ensure_future(serving.run())
    await until(door.has_worker, "the worker is seen")
    assert (await door.ask("before")).answer == "before"
    cable.cut()
    await until(lambda: len(told) == 2, "the worker has noticed")
    await until(lambda: _gone(door), "the front door has noticed")
    cable.mended.set()
    await until(lambda: len(told) == 3, "the worker is connected again")
    await until(lambda: _answers(door, "after"), "the worker answers again", seconds=15)
    serving.stop()
    await asyncio.wait_for(running, 10)
    cable.close()


async def _answers(door: FrontDoor, text: str) -> bool:
    return (await door.ask(text)).answer == text


async def _gone(door: FrontDoor) -> bool:
    return not await door.has_worker()


@pytest.mark.usefixtures("fast")
async def test_what_a_layer_cannot_say_is_a_failed_result_and_the_worker_goes_on(door: FrontDoor) -> None:
    serving = open_worker(door, EchoLayer("bitnet", confidence=2.0))
    running = asyncio.ensure_future(serving.run())
    await until(door.has_worker, "the worker is seen")
    for _ in range(2):
        answer = await asyncio.wait_for(door.ask("one"), 10)
        assert "confidence is not between 0 and 1" in str(answer.path[0].reason)
    assert not running.done()
    serving.stop()
    await asyncio.wait_for(running, 10)


async def test_a_refusal_for_good_ends_the_worker(door: FrontDoor) -> None:
    other = WorkerIn(**{**ME, "version": "0.0.9"})
    serving = Worker(EchoLayer("bitnet"), Door(door.url, TOKEN, "bitnet"), other, lambda: "", lambda _: None)
    with pytest.raises(ClientError, match="install the same on both"):
        await asyncio.wait_for(serving.run(), 10)
