"""A layer done by workers outside the cluster, on a real Redis: who gets the work, who may answer, who is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from kitbash_ray import replicas as replicas_module
from kitbash_ray import work as work_module
from kitbash_ray.edge import EdgeMember
from kitbash_ray.errors import LayerBusy, LayerUnavailable, StoreError
from kitbash_ray.redis_client import connect
from kitbash_ray.replicas import StreamingReplicas
from kitbash_ray.types import LayerResult, Query, Turn
from kitbash_ray.work import WorkStream
from kitbash_ray.work_types import BeatIn, Work

from .waiting import until as waited_for

until = partial(waited_for, seconds=5)

FOUND = LayerResult("bitnet", "answered", text="found", confidence=0.9)
EARLIER = LayerResult("grain", "abstained", reason="nothing near")
QUERY = Query("What is ATP?", id="q_1", history=(Turn("user", "Hello."),))
#: As long as nothing on this machine takes by itself, and short enough to wait for it.
LEASE_MS = 300

Ask = Callable[..., "asyncio.Task[LayerResult]"]


@pytest.fixture
async def stream(redis: Redis, redis_url: str) -> AsyncIterator[WorkStream]:
    client = connect(redis_url)
    yield WorkStream(client, "bitnet")
    await client.aclose()


@pytest.fixture
async def open_edge(redis_url: str) -> AsyncIterator[Callable[..., EdgeMember]]:
    """Open the member as a front-door replica does."""
    clients, running = [], []

    def opens(url: str = redis_url, timeout_s: float = 60.0) -> EdgeMember:
        clients.append(connect(url))
        edge = EdgeMember(WorkStream(clients[-1], "bitnet"), timeout_s)
        running.append(asyncio.create_task(edge.hear()))
        return edge

    yield opens
    for task in running:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    for client in clients:
        await client.aclose()


def beat(worker: str, *working: str, **changes: Any) -> BeatIn:
    return BeatIn(worker=worker, version="1", calibration="c", working=working, **changes)


async def connected(stream: WorkStream, *workers: str) -> None:
    for worker in workers:
        await stream.beat(beat(worker))


async def claimed(stream: WorkStream, worker: str) -> Work:
    await stream.beat(beat(worker))
    work = await stream.claim(worker, 5)
    assert work is not None
    return work


async def test_a_worker_gets_the_question_whole_and_its_answer_comes_back(stream: WorkStream, open_edge: Any) -> None:
    edge = open_edge(timeout_s=20)
    await connected(stream, "a")
    asking = asyncio.create_task(edge.answer(QUERY, (EARLIER,)))
    work = await claimed(stream, "a")
    assert (work.query, work.so_far) == (QUERY, (EARLIER,))
    assert 15 < work.seconds <= 20
    assert await stream.settle("a", work.id, FOUND)
    assert await asyncio.wait_for(asking, 5) == FOUND


async def test_the_members_load_is_that_of_its_least_busy_worker_and_one_for_the_way(
    stream: WorkStream, open_edge: Any
) -> None:
    edge = open_edge()
    with pytest.raises(LayerUnavailable, match="no worker of bitnet"):
        await edge.health()
    await connected(stream, "a", "b")
    loads = []
    for _ in range(5):
        loads.append((await edge.health()).load)
        await stream.put("me", "one", QUERY, (), 5)
    assert loads == [1, 1, 2, 2, 3]


async def test_without_a_worker_the_layer_is_unavailable_at_once(open_edge: Any, redis: Redis) -> None:
    with pytest.raises(LayerUnavailable, match="kitbash worker --layer bitnet"):
        await open_edge().answer(QUERY)
    assert await redis.exists("kitbash:work:bitnet") == 0


async def test_an_answer_comes_once_and_only_from_whoever_has_the_work(stream: WorkStream, open_edge: Any) -> None:
    edge = open_edge()
    await connected(stream, "a", "b")
    asking = asyncio.create_task(edge.answer(QUERY))
    work = await claimed(stream, "a")
    assert not await stream.settle("b", work.id, LayerResult("bitnet", "answered", text="forged"))
    assert await stream.settle("a", work.id, FOUND)
    assert not await stream.settle("a", work.id, LayerResult("bitnet", "answered", text="again"))
    assert await asking == FOUND
    assert await stream.claim("b", 0) is None


async def test_work_of_a_worker_that_is_silent_goes_to_the_next(
    stream: WorkStream, open_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "LEASE_MS", LEASE_MS)
    edge = open_edge()
    await connected(stream, "a", "b")
    asking = asyncio.create_task(edge.answer(QUERY))
    first = await claimed(stream, "a")

    async def b_lives() -> None:
        while True:
            await stream.beat(beat("b"))
            await asyncio.sleep(0.05)

    living = asyncio.create_task(b_lives())
    second = await claimed(stream, "b")
    assert second.id == first.id
    assert second.seconds < first.seconds
    # The first one, back again, hears that it is not its own, and its answer does not count
    assert await stream.beat(beat("a", first.id)) == (first.id,)
    assert not await stream.settle("a", first.id, LayerResult("bitnet", "answered", text="too late"))
    assert await stream.settle("b", second.id, FOUND)
    assert await asking == FOUND
    living.cancel()


async def test_a_heartbeat_keeps_work_as_long_as_it_takes(
    stream: WorkStream, open_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_module, "LEASE_MS", LEASE_MS)
    edge = open_edge()
    await connected(stream, "a")
    asking = asyncio.create_task(edge.answer(QUERY))
    work = await claimed(stream, "a")
    for _ in range(10):
        await asyncio.sleep(LEASE_MS / 5000)
        assert await stream.beat(beat("a", work.id)) == ()
        assert await stream.claim("b", 0) is None
    assert await stream.settle("a", work.id, FOUND)
    assert await asking == FOUND


async def test_a_question_that_two_workers_died_of_goes_to_no_third(
    stream: WorkStream, open_edge: Any, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    edge = open_edge()
    await connected(stream, "c")
    asking = asyncio.create_task(edge.answer(QUERY))
    await until(lambda: _waits(redis, 1), "the question waits")
    monkeypatch.setattr(work_module, "LEASE_MS", LEASE_MS)
    for worker in ("a", "b"):
        await claimed(stream, worker)
        await asyncio.sleep(LEASE_MS / 1000)
    await connected(stream, "c")
    assert await stream.claim("c", 0) is None
    with pytest.raises(LayerUnavailable, match="are gone"):
        await asyncio.wait_for(asking, 5)


async def test_when_the_last_worker_is_silent_nobody_waits_for_it(
    stream: WorkStream, open_edge: Any, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    monkeypatch.setattr(work_module, "LEASE_MS", LEASE_MS)
    monkeypatch.setattr(replicas_module, "CHECK_EVERY_S", 0.02)
    await connected(stream, "a")
    layer = StreamingReplicas("bitnet", [open_edge()])
    watching = asyncio.create_task(layer.watch())
    asking = asyncio.create_task(layer.answer(QUERY, ()))
    await claimed(stream, "a")
    with pytest.raises(LayerUnavailable, match="no worker of bitnet is connected"):
        await asyncio.wait_for(asking, 5)
    await until(lambda: _waits(redis, 0), "the work is withdrawn")
    watching.cancel()


async def _waits(redis: Redis, count: int) -> bool:
    return bool(await redis.xlen("kitbash:work:bitnet") == count)


async def test_a_question_that_is_called_off_is_taken_back_from_its_worker(
    stream: WorkStream, open_edge: Any, redis: Redis
) -> None:
    edge = open_edge()
    await connected(stream, "a")
    asking = asyncio.create_task(edge.answer(QUERY))
    work = await claimed(stream, "a")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: _waits(redis, 0), "the work is withdrawn")
    assert await stream.beat(beat("a", work.id)) == (work.id,)
    assert not await stream.settle("a", work.id, FOUND)


async def test_a_question_that_is_called_off_before_it_is_put_is_given_to_nobody(
    stream: WorkStream, open_edge: Any, redis: Redis
) -> None:
    edge = open_edge()
    await connected(stream, "a")
    for _ in range(20):
        asking = asyncio.create_task(edge.answer(QUERY))
        await asyncio.sleep(0)
        asking.cancel()
    await until(lambda: not edge._withdrawals and not edge._waiting, "all is withdrawn")
    assert await stream.claim("a", 0) is None


async def test_work_that_nobody_waits_for_any_more_is_given_to_nobody(stream: WorkStream, redis: Redis) -> None:
    await connected(stream, "a")
    await stream.put("me", "one", QUERY, (), 0.01)
    await asyncio.sleep(0.02)
    await stream.put("me", "two", QUERY, (), 5)
    work = await stream.claim("a", 0)
    assert work is not None
    assert work.seconds > 4
    assert await redis.xlen("kitbash:work:bitnet") == 1
    assert await redis.llen("kitbash:work:results:me") == 0


async def test_the_questions_own_time_is_shorter_than_the_layers(stream: WorkStream, open_edge: Any) -> None:
    edge = open_edge(timeout_s=60)
    await connected(stream, "a")
    asking = asyncio.create_task(edge.answer(Query("?", deadline_s=5)))
    assert (await claimed(stream, "a")).seconds <= 5
    asking.cancel()


async def test_too_much_work_is_refused_at_once(
    stream: WorkStream, open_edge: Any, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    monkeypatch.setattr(work_module, "MOST_WAITING", 2)
    edge = open_edge()
    await connected(stream, "a")
    asking = [asyncio.create_task(edge.answer(QUERY)) for _ in range(2)]
    await until(lambda: _waits(redis, 2), "two wait")
    with pytest.raises(LayerBusy, match="too many questions"):
        await edge.answer(QUERY)
    for task in asking:
        task.cancel()


async def test_many_questions_at_once_each_get_their_own_answer(stream: WorkStream, open_edge: Any) -> None:
    edge, other = open_edge(), open_edge()
    await connected(stream, "a")
    enough = asyncio.Event()

    async def works(name: str) -> None:
        while not enough.is_set():
            await stream.beat(beat(name))
            if work := await stream.claim(name, 1, lambda: not enough.is_set()):
                await stream.settle(name, work.id, LayerResult("bitnet", "answered", text=work.query.text))

    workers = [asyncio.create_task(works(name)) for name in ("a", "b", "c")]
    asked = [(edge, other)[number % 2].answer(Query(f"question {number}")) for number in range(100)]
    answers = await asyncio.wait_for(asyncio.gather(*asked), 30)
    assert [answer.text for answer in answers] == [f"question {number}" for number in range(100)]
    enough.set()
    await asyncio.gather(*workers)


async def test_a_worker_that_was_not_heard_lately_is_given_nothing(stream: WorkStream) -> None:
    await connected(stream, "a")
    await stream.put("me", "one", QUERY, (), 5)
    assert await stream.claim("silent", 0) is None
    assert await stream.claim("a", 0) is not None


async def test_a_worker_that_leaves_is_gone_at_once_and_its_work_is_free(stream: WorkStream, redis: Redis) -> None:
    await stream.beat(beat("a"))
    await stream.put("me", "one", QUERY, (), 5)
    work = await claimed(stream, "a")
    assert await stream.count() == (1, 1)
    assert await redis.exists("kitbash:actor:edge:bitnet:a")
    await stream.beat(beat("a", state="leaving"))
    assert await stream.count() == (0, 1)
    assert not await redis.exists("kitbash:actor:edge:bitnet:a")
    assert (await claimed(stream, "b")).id == work.id


async def test_whoever_stops_waiting_for_work_takes_none(stream: WorkStream) -> None:
    waiting = asyncio.create_task(stream.claim("a", 5))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await connected(stream, "b")
    await stream.put("me", "one", QUERY, (), 5)
    assert await stream.claim("b", 0) is not None


async def test_every_key_of_the_work_ends_by_itself(stream: WorkStream, redis: Redis) -> None:
    await stream.beat(beat("a"))
    await stream.put("me", "one", QUERY, (), 5)
    await stream.settle("a", (await claimed(stream, "a")).id, FOUND)
    keys = [key.decode() for key in await redis.keys("*")]
    assert sorted(keys) == [
        "kitbash:actor:edge:bitnet:a",
        "kitbash:actors",
        "kitbash:work:bitnet",
        "kitbash:work:bitnet:workers",
        "kitbash:work:results:me",
    ]
    assert [key for key in keys if await redis.ttl(key) < 0] == []


async def test_when_redis_is_away_the_layer_is_unavailable_and_it_is_back_with_it(own_redis: Any, open_edge: Any) -> None:
    client = connect(own_redis.url)
    stream, edge = WorkStream(client, "bitnet"), open_edge(own_redis.url)
    await connected(stream, "a")
    own_redis.stop()
    with pytest.raises(LayerUnavailable):
        await asyncio.wait_for(edge.answer(QUERY), 30)
    with pytest.raises(StoreError):
        await stream.claim("a", 1)
    own_redis.start()
    await connected(stream, "a")
    asking = asyncio.create_task(edge.answer(QUERY))
    assert await stream.settle("a", (await claimed(stream, "a")).id, FOUND)
    assert await asking == FOUND
    await client.aclose()
