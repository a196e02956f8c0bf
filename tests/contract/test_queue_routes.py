"""The queue over HTTP: the front door's real routes over a real Redis, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from actors.orchestrator import Orchestrator
from actors.queue_worker import QueueWorker, open_queue
from kitbash_ray.blackboard import Blackboard, feed_key
from kitbash_ray.cascade import Cascade
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.feed import Feed
from kitbash_ray.keys import add_key, keys_file
from kitbash_ray.policy import Fixed
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.testing import EchoLayer, FailingLayer, SlowLayer
from kitbash_ray.types import Answer, Event, Layer, decode
from serve_app import build_http
from tests.tasks import ended

OpenRecorder = Callable[..., Recorder]

TOKEN = "a token of sixteen characters"
ASKED = {"query": "What is ATP?"}


class Door:
    """A front door over one layer, and a client that has the token."""

    def __init__(self, http: httpx.AsyncClient, settings: Settings, orchestrator: Orchestrator) -> None:
        self.http = http
        self.settings = settings
        self.orchestrator = orchestrator
        self.tasks: list[asyncio.Task[None]] = []

    def work(self) -> None:
        """From now on there is a worker."""
        worker = QueueWorker("w", self.orchestrator, open_queue(self.settings), self.http)
        self.tasks.append(asyncio.create_task(worker.run()))

    async def submit(self, body: dict[str, Any] | None = None, key: str | None = None, token: str = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} | ({"Idempotency-Key": key} if key is not None else {})
        return await self.http.post("/v1/queries", json=ASKED if body is None else body, headers=headers)

    async def state(self, query_id: str, wait: object = 20) -> dict[str, Any]:
        reply = await self.http.get(f"/v1/queries/{query_id}?wait={wait}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())


Open = Callable[..., Door]


@pytest.fixture
async def open_door(redis: Redis, redis_url: str, open_recorder: OpenRecorder, tmp_path: Path) -> AsyncIterator[Open]:
    doors: list[Door] = []
    clients: list[Redis] = []

    def client(url: str) -> Redis:
        clients.append(connect(url))
        return clients[-1]

    def opens(layer: Layer | None = None, url: str = redis_url, **settings: object) -> Door:
        found = load_settings(redis_url=url, kitbash_state_dir=tmp_path, **settings)
        cascade = Cascade((layer or EchoLayer("kobold"),), Fixed(), timeouts_s={})
        orchestrator = Orchestrator(cascade, open_recorder(url), Blackboard(client(url)), Feed(client(url)))
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(build_http(orchestrator, found, TOKEN)),
            base_url="http://door",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        doors.append(Door(http, found, orchestrator))
        return doors[-1]

    yield opens
    for door in doors:
        await ended(door.tasks)
        await door.http.aclose()
    for each in clients:
        await each.aclose()


def sentence(reply: httpx.Response) -> str:
    return str(reply.json()["error"]["message"])


async def test_a_submitted_query_is_accepted_with_the_place_of_its_state(open_door: Open) -> None:
    door = open_door()
    reply = await door.submit()
    query_id = reply.json()["query_id"]
    assert reply.status_code == 202
    assert reply.json() == {"query_id": query_id, "state": "queued"}
    assert reply.headers["location"] == f"/v1/queries/{query_id}"
    assert (await door.state(query_id, wait=0))["state"] == "queued"
    assert (await door.http.get("/v1/queue")).json() == {"waiting": 1, "running": 0, "dead": 0}


async def test_who_waits_gets_the_answer_when_it_is_there(open_door: Open) -> None:
    door = open_door(slow := SlowLayer("kobold"))
    query_id = (await door.submit()).json()["query_id"]
    waiting = asyncio.create_task(door.state(query_id))
    door.work()
    await asyncio.wait_for(slow.started.wait(), 10)
    assert not waiting.done()
    slow.release.set()
    state = await waiting
    assert (state["state"], state["answer"]["answer"]) == ("answered", "at last")


async def test_who_has_waited_long_enough_gets_the_state_as_it_is(open_door: Open) -> None:
    door = open_door()
    query_id = (await door.submit()).json()["query_id"]
    assert (await door.state(query_id, wait=0.2))["state"] == "queued"


@pytest.mark.parametrize("wait", ["31", "-1", "soon", "nan", ""])
async def test_a_wait_that_is_no_number_of_seconds_is_refused(wait: str, open_door: Open) -> None:
    reply = await open_door().http.get(f"/v1/queries/q_0000000000000000?wait={wait}")
    assert (reply.status_code, sentence(reply)) == (400, "`wait` is a number of seconds from 0 to 30.")


async def test_waiting_for_a_query_that_does_not_exist_ends_at_once(open_door: Open) -> None:
    assert (await open_door().http.get("/v1/queries/q_0000000000000000?wait=30")).status_code == 404


async def test_the_same_key_and_question_get_the_same_reply_also_after_the_answer(open_door: Open) -> None:
    door = open_door()
    first = await door.submit(key="k")
    again = await door.submit({"query": " What is ATP? ", "factions": ["general"]}, key="k")  # the same, written otherwise
    door.work()
    await door.state(first.json()["query_id"])
    later = await door.submit(key="k")
    for reply in (again, later):
        assert (reply.status_code, reply.json()) == (202, first.json())
        assert reply.headers["location"] == first.headers["location"]


async def test_the_same_key_with_another_question_is_refused(open_door: Open) -> None:
    door = open_door()
    await door.submit(key="k")
    for other in ({"query": "What is ADP?"}, {**ASKED, "callback_url": "http://localhost/told"}, {**ASKED, "max_error": 0.1}):
        reply = await door.submit(other, key="k")
        assert reply.status_code == 422
        assert "another body" in sentence(reply)


async def test_keys_of_different_callers_are_different_keys(open_door: Open) -> None:
    door = open_door()
    callers = [TOKEN, *(add_key(keys_file(door.settings), name, None) for name in ("ann", "bob"))]
    ids = [(await door.submit(key="k", token=caller)).json()["query_id"] for caller in callers]
    assert len(set(ids)) == 3
    assert [(await door.submit(key="k", token=caller)).json()["query_id"] for caller in callers] == ids


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\t"])
async def test_a_key_that_is_none_is_refused(key: str, open_door: Open) -> None:
    reply = await open_door().submit(key=key)
    assert (reply.status_code, sentence(reply)) == (400, "An Idempotency-Key has 1 to 255 visible ASCII characters.")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": ""},
        {**ASKED, "callback_url": "ftp://localhost/x"},
        {**ASKED, "callback_url": "file:///etc/passwd"},
        {**ASKED, "callback_url": "told"},
        {**ASKED, "callback_url": 1},
        {**ASKED, "unknown": 1},
        {**ASKED, "query": "nul \0"},
    ],
)
async def test_a_malformed_body_is_refused_in_a_sentence_and_nothing_is_queued(
    body: dict[str, Any], open_door: Open, redis: Redis
) -> None:
    reply = await open_door().submit(body)
    assert reply.status_code == 400
    assert sentence(reply).endswith(".")
    assert await redis.keys() == []


async def test_asking_now_takes_no_callback(open_door: Open) -> None:
    reply = await open_door().http.post("/v1/query", json={**ASKED, "callback_url": "http://localhost/told"})
    assert reply.status_code == 400


async def test_without_a_token_nothing_is_queued(open_door: Open) -> None:
    door = open_door()
    for method, path in (
        ("POST", "/v1/queries"),
        ("GET", "/v1/queue"),
        ("GET", "/v1/dead-letters"),
        ("POST", "/v1/dead-letters/q_0/requeue"),
        ("DELETE", "/v1/dead-letters/q_0"),
    ):
        assert (await door.http.request(method, path, headers={"Authorization": ""}, json=ASKED)).status_code == 401


async def test_a_full_queue_says_when_to_come_again(open_door: Open) -> None:
    door = open_door(kitbash_queue_length=2)
    statuses = [(await door.submit()).status_code for _ in range(2)]
    reply = await door.submit()
    assert ([*statuses, reply.status_code], reply.headers["retry-after"]) == ([202, 202, 429], "5")
    assert sentence(reply) == "The queue is full; try again when some of it is answered."


async def test_without_redis_nothing_is_promised(own_redis, open_door: Open) -> None:
    door = open_door(url=own_redis.url)
    own_redis.stop()
    reply = await door.submit()
    assert reply.status_code == 503
    assert reply.headers["retry-after"]
    assert "Redis does not answer" in sentence(reply)


async def test_a_queued_query_is_cancelled_at_once(open_door: Open, redis: Redis) -> None:
    door = open_door()
    query_id = (await door.submit()).json()["query_id"]
    reply = await door.http.delete(f"/v1/queries/{query_id}")
    assert (reply.status_code, reply.json()) == (200, {"query_id": query_id, "state": "cancelled"})
    assert (await door.state(query_id, wait=0))["state"] == "cancelled"
    again = await door.http.delete(f"/v1/queries/{query_id}")
    assert (again.status_code, sentence(again)) == (409, "The query is cancelled already.")
    # And no worker begins it
    door.work()
    other = (await door.submit()).json()["query_id"]
    assert (await door.state(other))["state"] == "answered"
    events = [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(feed_key())]
    assert [event.kind for event in events if event.query_id == query_id] == ["query.finished"]


async def test_a_query_that_another_replica_works_on_is_cancelled_at_once(open_door: Open) -> None:
    working, other = open_door(slow := SlowLayer("kobold")), open_door()
    query_id = (await working.submit()).json()["query_id"]
    working.work()
    heeding = asyncio.create_task(working.orchestrator.heed_calls())
    working.tasks.append(heeding)
    await asyncio.wait_for(slow.started.wait(), 10)
    reply = await other.http.delete(f"/v1/queries/{query_id}")
    assert (reply.status_code, reply.json()["state"]) == (200, "cancelled")
    assert (await other.state(query_id, wait=0))["state"] == "cancelled"
    await asyncio.wait_for(slow.cancelled.wait(), 10)
    assert (await other.state(query_id))["state"] == "cancelled"


async def test_a_query_that_nobody_works_on_any_more_is_cancelled_at_once(open_door: Open) -> None:
    door = open_door()
    query_id = (await door.submit()).json()["query_id"]
    queue = open_queue(door.settings)
    assert await queue.claim("dead") or await queue.claim("dead")
    assert (await door.state(query_id, wait=0))["state"] == "running"
    assert (await door.http.delete(f"/v1/queries/{query_id}")).json()["state"] == "cancelled"


async def dead_letters(door: Door) -> list[dict[str, Any]]:
    """Those that are there, a moment after the end of their query."""
    for _ in range(1000):
        if listed := (await door.http.get("/v1/dead-letters")).json():
            return list(listed)
        await asyncio.sleep(0.01)
    raise AssertionError("there is no dead letter")


async def test_a_query_that_failed_is_listed_requeued_and_dropped(open_door: Open) -> None:
    door = open_door(FailingLayer("kobold"))
    door.work()
    query_id = (await door.submit()).json()["query_id"]
    assert (await door.state(query_id))["state"] == "failed"

    listed = await dead_letters(door)
    assert [(letter["query_id"], letter["attempts"]) for letter in listed] == [(query_id, 1)]
    assert listed[0]["job"]["query"]["text"] == "What is ATP?"
    # When it is tried again, it fails again
    reply = await door.http.post(f"/v1/dead-letters/{query_id}/requeue")
    assert (reply.status_code, reply.json()) == (202, {"query_id": query_id, "state": "queued"})
    assert await dead_letters(door)
    assert (await door.http.delete(f"/v1/dead-letters/{query_id}")).json()["state"] == "dropped"
    assert (await door.http.get("/v1/dead-letters")).json() == []
    for gone in (
        await door.http.delete(f"/v1/dead-letters/{query_id}"),
        await door.http.post(f"/v1/dead-letters/{query_id}/requeue"),
    ):
        assert (gone.status_code, sentence(gone)) == (404, f"There is no dead letter '{query_id}' (any more).")


async def test_the_answer_is_that_of_any_question(open_door: Open) -> None:
    door = open_door()
    door.work()
    query_id = (await door.submit()).json()["query_id"]
    answer = decode(Answer, httpx.Response(200, json=(await door.state(query_id))["answer"]).content)
    asked = decode(Answer, (await door.http.post("/v1/query", json=ASKED)).content)
    assert (answer.answer, answer.layer, answer.policy) == (asked.answer, asked.layer, asked.policy)


async def test_the_description_of_the_api_has_the_queue(open_door: Open) -> None:
    paths = (await open_door().http.get("/openapi.json")).json()["paths"]
    submit = paths["/v1/queries"]["post"]
    properties = submit["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "callback_url" in properties
    assert [parameter["name"] for parameter in submit["parameters"]] == ["Idempotency-Key"]
    assert "202" in submit["responses"]
