"""Workers of the queue over a real Redis: each query ends once, whatever happens to who works on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import httpx
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from actors import queue_worker as module
from actors.orchestrator import Orchestrator
from actors.queue_worker import QueueWorker
from kitbash_ray import callback as callback_module
from kitbash_ray import recorder as recorder_module
from kitbash_ray.blackboard import Blackboard, QueryState, feed_key, query_key
from kitbash_ray.cascade import Cascade
from kitbash_ray.feed import Feed
from kitbash_ray.policy import Asked
from kitbash_ray.queue import Counts, Queue
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.testing import EchoLayer, FailingLayer, SlowLayer
from kitbash_ray.types import Answer, Event, Job, Layer, Query, decode
from tests.tasks import ended

from .callback_server import receiver
from .waiting import until as waited_for

OpenRecorder = Callable[..., Recorder]

#: Seconds within which something that is bound to happen happens.
SOON_S = 20.0
until = partial(waited_for, seconds=SOON_S)


class Replica:
    """A front-door replica without Ray: an orchestrator over one layer, and one worker of the queue."""

    def __init__(self, worker: QueueWorker, orchestrator: Orchestrator, queue: Queue) -> None:
        self.orchestrator = orchestrator
        self.queue = queue
        self._task = asyncio.create_task(worker.run())

    async def die(self) -> None:
        """As by SIGKILL: nothing of it says a word any more."""
        self.orchestrator.recorder._send = self._silent  # type: ignore[method-assign]
        await ended((self._task,))

    async def _silent(self, batch: list[Event]) -> None:
        raise OSError("this process is dead")


Open = Callable[..., Replica]


@pytest.fixture
async def open_replica(redis_url: str, open_recorder: OpenRecorder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.05)
    monkeypatch.setattr(callback_module, "TRIES_S", (0.0, 0.01, 0.01))
    clients: list[Redis] = []
    opened: list[Replica] = []

    def client(url: str) -> Redis:
        clients.append(connect(url))
        return clients[-1]

    async with httpx.AsyncClient(trust_env=False) as http:

        def opens(layer: Layer, url: str = redis_url, *, lease_s: float = 0.3) -> Replica:
            queue = Queue(client(url), length=100, ttl_s=100, lease_s=lease_s)
            cascade = Cascade((layer,), Asked(), timeouts_s={})
            orchestrator = Orchestrator(cascade, open_recorder(url), Blackboard(client(url)), Feed(client(url)))
            worker = QueueWorker(f"w-{len(opened)}", orchestrator, queue, http)
            opened.append(Replica(worker, orchestrator, queue))
            return opened[-1]

        yield opens
        for replica in opened:
            await replica.die()
    for each in clients:
        await each.aclose()


def job(number: int = 1, **fields: object) -> Job:
    return Job(Query(f"question {number}", id=f"q_{number}", layers=("kobold",)), **fields)  # type: ignore[arg-type]


async def settled(redis: Redis, queue: Queue, query_id: str = "q_1") -> QueryState:
    """The state of a query once the queue has done with it."""

    async def gone() -> bool:
        counts = await queue.counts()
        return counts.waiting + counts.running == 0

    await until(gone, "the queue is empty")
    state = await Blackboard(redis).query(query_id)
    assert state is not None
    return state


async def ends(redis: Redis) -> list[str]:
    """The ids of the queries that have ended, as often as the feed says so."""
    events = [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(feed_key())]
    return [event.query_id for event in events if event.kind == "query.finished"]


async def test_a_queued_query_is_answered_and_leaves_the_queue(redis: Redis, open_replica: Open) -> None:
    replica = open_replica(EchoLayer("kobold"))
    await replica.queue.submit(job())
    state = await settled(redis, replica.queue)
    assert state.answer is not None
    assert (state.state, state.answer.answer, state.answer.recorded) == ("answered", "question 1", True)
    assert await ends(redis) == ["q_1"]
    assert 0 < await redis.ttl(query_key("q_1")) <= 100


async def test_many_workers_answer_each_query_once(redis: Redis, open_replica: Open) -> None:
    replicas = [open_replica(EchoLayer("kobold")) for _ in range(4)]
    for number in range(50):
        await replicas[0].queue.submit(job(number))
    await settled(redis, replicas[0].queue, "q_0")
    assert sorted(await ends(redis)) == sorted(f"q_{number}" for number in range(50))


async def test_the_query_of_a_dead_worker_is_answered_by_another(redis: Redis, open_replica: Open) -> None:
    dying = open_replica(slow := SlowLayer("kobold"))
    await dying.queue.submit(job())
    await asyncio.wait_for(slow.started.wait(), SOON_S)
    await dying.die()
    assert await redis.hget(query_key("q_1"), "state") == b"running"
    state = await settled(redis, open_replica(EchoLayer("kobold")).queue)
    assert (state.state, state.attempt) == ("answered", 3)
    assert await ends(redis) == ["q_1"]


async def test_a_query_that_takes_longer_than_a_lease_stays_with_its_worker(redis: Redis, open_replica: Open) -> None:
    replica = open_replica(slow := SlowLayer("kobold"))
    await replica.queue.submit(job())
    await asyncio.wait_for(slow.started.wait(), SOON_S)
    open_replica(EchoLayer("kobold"))
    await asyncio.sleep(1.0)  # three terms
    slow.release.set()
    state = await settled(redis, replica.queue)
    assert state.answer is not None
    assert (state.attempt, state.answer.answer) == (2, "at last")


async def test_who_loses_the_lease_stops_working_and_says_nothing(redis: Redis, open_replica: Open) -> None:
    replica = open_replica(slow := SlowLayer("kobold"), lease_s=0.6)
    await replica.queue.submit(job())
    await asyncio.wait_for(slow.started.wait(), SOON_S)
    # When another one has taken the entry over
    (pending,) = await redis.xpending_range("kitbash:queue", "front_doors", "-", "+", 1)
    await redis.xclaim("kitbash:queue", "front_doors", "thief", 0, [pending["message_id"]])
    await asyncio.wait_for(slow.cancelled.wait(), SOON_S)
    await replica.orchestrator.recorder.flush()
    assert await ends(redis) == []
    slow.release.set()
    assert (await settled(redis, replica.queue)).state == "answered"
    assert await ends(redis) == ["q_1"]


async def test_a_late_answer_is_refused_where_another_one_was_given(redis: Redis, open_replica: Open) -> None:
    # Given a worker that does not notice that its query is in other hands, because it renews seldom
    late = open_replica(slow := SlowLayer("kobold"), lease_s=100)
    await late.queue.submit(job())
    await asyncio.wait_for(slow.started.wait(), SOON_S)
    quick = open_replica(EchoLayer("kobold"), lease_s=0.1)
    await until(lambda: _is_answered(redis), "another one has answered")
    # When it is done, too
    slow.release.set()
    await settled(redis, quick.queue)
    await until(lambda: _idle(late), "it has ended")
    await late.orchestrator.recorder.flush()
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert state.answer is not None
    assert state.answer.answer == "question 1"
    assert await ends(redis) == ["q_1"]


async def _is_answered(redis: Redis) -> bool:
    return bool(await redis.hget(query_key("q_1"), "state") == b"answered")


async def _idle(replica: Replica) -> bool:
    return replica.orchestrator.in_flight == 0


async def test_a_query_whose_worker_dies_each_time_is_given_up(redis: Redis, open_replica: Open) -> None:
    queue = None
    for number in range(3):
        replica = open_replica(slow := SlowLayer("kobold"))
        queue = replica.queue
        if number == 0:
            await queue.submit(job())
        await asyncio.wait_for(slow.started.wait(), SOON_S)
        await replica.die()
    healthy = EchoLayer("kobold")
    state = await settled(redis, open_replica(healthy).queue)
    assert state.state == "failed"
    assert healthy.asked == []
    assert queue is not None
    (letter,) = await queue.dead_letters()
    assert (letter.query_id, letter.reason) == ("q_1", "given up: 3 workers began it and none came to an end")
    assert await ends(redis) == ["q_1"]
    # When somebody queues it again
    assert await queue.requeue("q_1")
    assert (await settled(redis, queue)).state == "answered"
    assert len(healthy.asked) == 1


async def test_a_query_that_every_layer_fails_is_a_dead_letter(redis: Redis, open_replica: Open) -> None:
    replica = open_replica(FailingLayer("kobold"))
    await replica.queue.submit(job())
    assert (await settled(redis, replica.queue)).state == "failed"
    (letter,) = await replica.queue.dead_letters()
    assert letter.attempts == 1
    assert letter.reason
    assert await replica.queue.counts() == Counts(0, 0, 1)


async def test_a_queued_query_that_is_called_off_is_cancelled_and_never_begun(redis: Redis, open_replica: Open) -> None:
    # Given a replica that is busy
    busy = open_replica(slow := SlowLayer("kobold"))
    await busy.queue.submit(job(0))
    await asyncio.wait_for(slow.started.wait(), SOON_S)
    await busy.queue.submit(job(1))
    # When the second query ends before its turn
    busy.orchestrator.end(Query("question 1", id="q_1", attempt=1), "cancelled", "it was called off")
    await busy.orchestrator.recorder.flush()
    assert await redis.hget(query_key("q_1"), "state") == b"cancelled"
    slow.release.set()
    assert (await settled(redis, busy.queue)).state == "cancelled"
    assert sorted(await ends(redis)) == ["q_0", "q_1"]
    received = [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(feed_key())]
    assert [event.query_id for event in received if event.kind == "query.received"] == ["q_0"]


async def test_a_running_query_that_is_called_off_is_cancelled(redis: Redis, open_replica: Open) -> None:
    replica = open_replica(slow := SlowLayer("kobold"))
    await replica.queue.submit(job())
    await asyncio.wait_for(slow.started.wait(), SOON_S)
    assert replica.orchestrator.call_off("q_1")
    assert (await settled(redis, replica.queue)).state == "cancelled"
    assert slow.cancelled.is_set()
    # And the worker goes on with the next
    slow.release.set()
    await replica.queue.submit(job(2))
    assert (await settled(redis, replica.queue, "q_2")).state == "answered"


async def test_while_redis_is_away_nothing_is_lost_and_nothing_ends_twice(own_redis, open_replica: Open) -> None:
    replica = open_replica(slow := SlowLayer("kobold"), own_redis.url)
    for number in range(5):
        await replica.queue.submit(job(number))
    await asyncio.wait_for(slow.started.wait(), SOON_S)
    own_redis.stop()
    slow.release.set()  # the answer is made while Redis is away
    await until(lambda: _idle(replica), "the first query is answered")
    own_redis.start()
    async with Redis.from_url(own_redis.url) as redis:
        await settled(redis, replica.queue, "q_0")
        assert sorted(await ends(redis)) == [f"q_{number}" for number in range(5)]


async def test_an_end_that_is_lost_on_its_way_is_made_anew(
    redis: Redis, open_replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a replica whose disk and Redis lose every event
    replica = open_replica(EchoLayer("kobold"))

    async def lose(batch: list[Event]) -> None:
        lost.set()

    lost = asyncio.Event()
    monkeypatch.setattr(replica.orchestrator.recorder, "_send", lose)
    monkeypatch.setattr(module, "LOOKS", 2)
    await replica.queue.submit(job())
    await asyncio.wait_for(lost.wait(), SOON_S)
    # Then a healthy one has the query after a while
    open_replica(EchoLayer("kobold"))
    assert (await settled(redis, replica.queue)).state == "answered"
    assert await ends(redis) == ["q_1"]


# Callbacks


@pytest.mark.parametrize(
    ("layer", "status"),
    [(EchoLayer("kobold"), "answered"), (FailingLayer("kobold"), "failed")],
    ids=["answered", "failed"],
)
async def test_the_callback_gets_the_answer_that_the_blackboard_has(
    layer: Layer, status: str, redis: Redis, open_replica: Open
) -> None:
    async with receiver() as told:
        replica = open_replica(layer)
        await replica.queue.submit(job(callback_url=told.url))
        state = await settled(redis, replica.queue)
    (body,) = told.bodies
    assert decode(Answer, body) == state.answer
    assert (state.state, state.callback) == (status, "delivered")


@pytest.mark.parametrize("first", [500, 404, 302, 0], ids=["error", "not there", "elsewhere", "no reply"])
async def test_a_callback_that_fails_is_tried_again(first: int, redis: Redis, open_replica: Open) -> None:
    async with receiver(first, 200) as told:
        replica = open_replica(EchoLayer("kobold"))
        await replica.queue.submit(job(callback_url=told.url))
        state = await settled(redis, replica.queue)
    assert len(told.bodies) == 2
    assert state.callback == "delivered"


async def test_a_callback_that_never_works_is_noted_and_stops_nobody(redis: Redis, open_replica: Open) -> None:
    async with receiver(503) as told:
        replica = open_replica(EchoLayer("kobold"))
        await replica.queue.submit(job(1, callback_url=told.url))
        await replica.queue.submit(job(2, callback_url="http://127.0.0.1:1/nobody"))
        await replica.queue.submit(job(3))
        state = await settled(redis, replica.queue)
    assert len(told.bodies) == 3
    assert (state.state, state.callback) == ("answered", "failed: the receiver replied 503")
    other = await Blackboard(redis).query("q_2")
    assert other is not None
    assert other.callback is not None
    assert other.callback.startswith("failed: ")
    assert sorted(await ends(redis)) == ["q_1", "q_2", "q_3"]


async def test_who_takes_over_an_ended_query_only_delivers(redis: Redis, open_replica: Open) -> None:
    # Given a worker that died between the end and the delivery
    dead = open_replica(EchoLayer("kobold"))
    await dead.die()
    async with receiver() as told:
        await dead.queue.submit(job(callback_url=told.url))
        lease = None
        while lease is None:
            lease = await dead.queue.claim("dead")
        writer = open_replica(EchoLayer("kobold"), lease_s=100)
        writer.orchestrator.end(replace(lease.query, id="q_1"), "abstained", "nobody knows")
        await writer.orchestrator.recorder.flush()
        # When another one claims it
        layer = EchoLayer("kobold")
        open_replica(layer)
        state = await settled(redis, dead.queue)
    assert (state.state, state.callback, layer.asked) == ("abstained", "delivered", [])
    (body,) = told.bodies
    assert decode(Answer, body).reason == "nobody knows"
    assert await ends(redis) == ["q_1"]
