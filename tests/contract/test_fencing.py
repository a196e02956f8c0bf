"""What record.lua refuses of queued queries, in a real Redis, so that each ends once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from actors.orchestrator import Orchestrator
from kitbash_ray import recorder as recorder_module
from kitbash_ray.blackboard import Blackboard, events_key, feed_key, query_key
from kitbash_ray.cascade import Cascade
from kitbash_ray.feed import Feed
from kitbash_ray.policy import Asked
from kitbash_ray.queue import Queue
from kitbash_ray.testing import EchoLayer
from kitbash_ray.types import ATTEMPT_EVENTS, Event, Job, decode, encode

from .queued import JOB, SHORT_S, OpenQueue, OpenRecorder, claimed, finish, finishes, life_of, record


async def two_attempts(queue: Queue) -> tuple[int, int]:
    """The numbers of an attempt that has lost its query, and of the one that has it now."""
    await queue.submit(JOB)
    first = await claimed(queue, "w-1")
    second = await claimed(queue, "w-2")
    return first.attempt, second.attempt


async def test_everything_of_a_stale_attempt_is_refused(
    redis: Redis, redis_url: str, open_queue: OpenQueue, open_recorder: OpenRecorder
) -> None:
    stale, current = await two_attempts(open_queue(lease_s=SHORT_S))
    before = {key: await redis.dump(key) for key in await redis.keys()}
    await record(open_recorder(redis_url), *life_of(stale, "stale"))
    assert {key: await redis.dump(key) for key in await redis.keys()} == before
    await record(open_recorder(redis_url), *life_of(current, "current"))
    assert await Blackboard(redis).events("q_1") == life_of(current, "current")
    assert await finishes(redis) == [finish(current, "current")]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
async def test_events_of_two_attempts_in_any_order_leave_one_end(
    together: bool, redis: Redis, redis_url: str, open_queue: OpenQueue, open_recorder: OpenRecorder
) -> None:
    stale, current = await two_attempts(open_queue(lease_s=SHORT_S))
    recorder = open_recorder(redis_url)
    mixed = [event for pair in zip(life_of(current, "current"), life_of(stale, "stale"), strict=True) for event in pair]
    for event in mixed:
        recorder.append(event)
        if not together:
            await recorder.flush()
    await recorder.flush()
    assert await finishes(redis) == [finish(current, "current")]
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert state.answer is not None
    assert state.answer.answer == "current"


async def test_what_an_attempt_did_before_it_lost_its_query_stays_and_the_next_goes_behind(
    redis: Redis, redis_url: str, open_queue: OpenQueue, open_recorder: OpenRecorder
) -> None:
    queue, recorder = open_queue(lease_s=SHORT_S), open_recorder(redis_url)
    await queue.submit(JOB)
    first = await claimed(queue, "w-1")
    await record(recorder, *life_of(first.attempt)[:2])
    second = await claimed(queue, "w-2")
    await record(recorder, *life_of(first.attempt)[2:], *life_of(second.attempt))
    assert await Blackboard(redis).events("q_1") == [*life_of(first.attempt)[:2], *life_of(second.attempt)]


@pytest.mark.parametrize("late", [finish(2, "again"), finish(2, status="cancelled"), life_of(2)[0]], ids=lambda e: e.kind)
async def test_nothing_comes_after_the_end(
    late: Event, redis: Redis, redis_url: str, queue: Queue, open_recorder: OpenRecorder
) -> None:
    await queue.submit(JOB)
    assert (await claimed(queue)).attempt == 2
    recorder = open_recorder(redis_url)
    later = replace(late, seq=late.seq + 100)
    await record(recorder, *life_of(2), later)
    await record(recorder, later)
    assert await Blackboard(redis).events("q_1") == life_of(2)
    assert await redis.hget(query_key("q_1"), "state") == b"answered"


async def test_events_of_other_queries_in_the_same_batch_are_written(
    redis: Redis, redis_url: str, open_queue: OpenQueue, open_recorder: OpenRecorder, life: Callable[..., list[Event]]
) -> None:
    stale, current = await two_attempts(open_queue(lease_s=SHORT_S))
    await record(open_recorder(redis_url), *life("q_2"), *life_of(stale), *life("q_3"), *life_of(current), *life("q_4"))
    written = [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(feed_key())]
    assert written == [*life("q_2"), *life("q_3"), *life_of(current), *life("q_4")]
    assert [await redis.hget(query_key(f"q_{n}"), "state") for n in range(1, 5)] == [b"answered"] * 4


async def test_a_stale_attempt_in_the_spool_is_refused_when_it_is_replayed(
    redis: Redis, redis_url: str, open_queue: OpenQueue, open_recorder: OpenRecorder, tmp_path: Path
) -> None:
    stale, current = await two_attempts(open_queue(lease_s=SHORT_S))
    (tmp_path / "spool").mkdir()
    left = tmp_path / "spool" / "1-1.jsonl"
    left.write_bytes(b"".join(encode(event) + b"\n" for event in life_of(stale, "stale")))
    recorder = open_recorder(redis_url)
    await record(recorder, *life_of(current, "current"))
    await recorder.caught_up()
    assert not left.exists()
    assert await Blackboard(redis).events("q_1") == life_of(current, "current")
    assert await finishes(redis) == [finish(current, "current")]


async def test_an_attempt_that_was_spooled_ends_its_query_once_redis_is_back(
    own_redis, open_queue: OpenQueue, open_recorder: OpenRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.0)
    queue, recorder = open_queue(own_redis.url), open_recorder(own_redis.url)
    await queue.submit(JOB)
    lease = await claimed(queue)
    own_redis.stop()
    await record(recorder, *life_of(lease.attempt))
    own_redis.start()
    await recorder.caught_up()
    async with Redis.from_url(own_redis.url) as redis:
        assert await finishes(redis) == [finish(lease.attempt)]
    assert await queue.renew(lease)  # its term outlives the restart


async def test_a_query_that_is_worked_on_does_not_expire(
    redis: Redis, redis_url: str, queue: Queue, open_recorder: OpenRecorder
) -> None:
    await queue.submit(JOB)
    lease = await claimed(queue)
    await record(open_recorder(redis_url), *life_of(lease.attempt))
    assert await redis.ttl(query_key("q_1")) == -1
    assert 0 < await redis.ttl(events_key("q_1")) <= 100


async def test_the_cascade_numbers_the_events_of_an_attempt_behind_those_before(
    redis: Redis, redis_url: str, open_queue: OpenQueue, open_recorder: OpenRecorder
) -> None:
    queue = open_queue(lease_s=SHORT_S)
    cascade = Cascade((EchoLayer("grain"),), Asked(), timeouts_s={})
    orchestrator = Orchestrator(cascade, open_recorder(redis_url), Blackboard(redis), Feed(redis))
    await queue.submit(Job(replace(JOB.query, layers=("grain",))))
    await claimed(queue, "w-1")
    lease = await claimed(queue, "w-2")
    answer = await orchestrator.ask(lease.query)
    await orchestrator.recorder.flush()
    events = await Blackboard(redis).events("q_1")
    assert answer.status == "answered"
    assert {event.attempt for event in events} == {3}
    assert [event.seq for event in events] == [3 * ATTEMPT_EVENTS + number for number in range(4)]
