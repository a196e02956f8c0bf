"""The queue in a real Redis: who works on what, for how long, and what becomes of a query that is given up."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from kitbash_ray.blackboard import Blackboard, dead_letters_key, events_key, query_key, queue_key
from kitbash_ray.errors import StoreError
from kitbash_ray.queue import MAX_DEAD, Counts, Lease, Queue, digest
from kitbash_ray.recorder import Recorder
from kitbash_ray.types import Job, Query

from .queued import JOB, SHORT_S, OpenQueue, OpenRecorder, claimed, finish, life_of, record


async def test_a_submitted_query_is_queued_and_lives_until_it_is_settled(redis: Redis, queue: Queue) -> None:
    assert (await queue.submit(JOB)).outcome == "accepted"
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert (state.state, state.text, state.asked_at) == ("queued", "What is ATP?", JOB.query.asked_at)
    assert await redis.ttl(query_key("q_1")) == -1
    assert await queue.counts() == Counts(1, 0, 0)


async def test_queries_are_claimed_in_the_order_in_which_they_came(queue: Queue) -> None:
    for number in range(5):
        await queue.submit(Job(Query("?", id=f"q_{number}")))
    assert [(await claimed(queue, f"w-{n}")).job.query.id for n in range(5)] == [f"q_{number}" for number in range(5)]
    assert await queue.counts() == Counts(0, 5, 0)


async def test_an_empty_queue_gives_nothing(queue: Queue) -> None:
    assert await queue.counts() == Counts(0, 0, 0)
    assert await queue.claim("w-1") is None
    assert await queue.claim("w-1") is None


async def test_a_claim_waits_for_a_query(queue: Queue, open_queue: OpenQueue) -> None:
    await queue.claim("w-1")  # from now on there is a group
    waiting = asyncio.create_task(claimed(queue))
    await open_queue().submit(JOB)
    assert (await asyncio.wait_for(waiting, 5)).job == JOB


async def test_a_submit_that_is_sent_again_is_one_query(queue: Queue) -> None:
    assert await queue.submit(JOB) == await queue.submit(JOB)
    assert (await queue.counts()).waiting == 1


async def test_a_full_queue_takes_nothing_until_a_query_is_worked_on(open_queue: OpenQueue, redis: Redis) -> None:
    queue = open_queue(length=1)
    await queue.submit(JOB)
    other = Job(Query("?", id="q_2"))
    assert (await queue.submit(other)).outcome == "full"
    assert not await redis.exists(query_key("q_2"))
    await claimed(queue)
    assert (await queue.submit(other)).outcome == "accepted"


async def test_the_same_key_and_body_are_one_query_and_another_body_is_refused(queue: Queue, redis: Redis) -> None:
    keyed = replace(JOB, idempotency=digest("me", "k"))
    again = replace(keyed, query=Query("What is ATP?", id="q_2"))
    first = await queue.submit(keyed, "body")
    assert (first.outcome, first.query_id) == ("accepted", "q_1")
    assert await queue.submit(again, "body") == first
    assert (await queue.submit(again, "another body")).outcome == "reused"
    assert (await queue.counts()).waiting == 1
    # The key of somebody else is another key
    assert (await queue.submit(replace(again, idempotency=digest("you", "k")), "another body")).query_id == "q_2"


async def test_many_that_submit_with_one_key_at_once_are_one_query(open_queue: OpenQueue) -> None:
    key = digest("me", "k")
    jobs = [Job(Query("?", id=f"q_{number}"), idempotency=key) for number in range(20)]
    told = await asyncio.gather(*(open_queue().submit(job, "body") for job in jobs))
    assert len({submitted.query_id for submitted in told}) == 1
    assert (await open_queue().counts()).waiting == 1


async def test_a_key_is_known_as_long_as_its_query(queue: Queue, redis: Redis) -> None:
    await queue.submit(replace(JOB, idempotency="d"), "body")
    assert await redis.ttl("kitbash:idempotency:d") == -1
    assert await queue.settle(await claimed(queue))
    assert 0 < await redis.ttl("kitbash:idempotency:d") <= 100
    assert 0 < await redis.ttl(query_key("q_1")) <= 100


async def test_each_claim_is_a_new_attempt(open_queue: OpenQueue, redis: Redis) -> None:
    queue = open_queue(lease_s=SHORT_S)
    await queue.submit(JOB)
    leases = [await claimed(queue, f"w-{number}") for number in range(3)]
    assert [lease.attempt for lease in leases] == [2, 3, 4]  # the first number belongs to whoever accepted it
    assert [lease.claims for lease in leases] == [1, 2, 3]
    assert [lease.entry for lease in leases] == [leases[0].entry] * 3
    assert await redis.hget(query_key("q_1"), "state") == b"running"


async def test_of_many_workers_one_takes_over(open_queue: OpenQueue) -> None:
    await open_queue().submit(JOB)
    await claimed(open_queue(lease_s=SHORT_S), "dead")
    queue = open_queue(lease_s=SHORT_S)
    await asyncio.sleep(SHORT_S)
    patient = [open_queue(lease_s=SHORT_S) for _ in range(5)]
    found = await asyncio.gather(*(other._call(other._stale(f"w-{n}")) for n, other in enumerate(patient)))
    assert len([entry for entry in found if entry]) == 1
    assert (await queue.counts()).running == 1


async def test_a_lease_that_is_renewed_is_kept(open_queue: OpenQueue) -> None:
    queue = open_queue(lease_s=0.4)
    await queue.submit(JOB)
    lease = await claimed(queue)
    for _ in range(5):
        await asyncio.sleep(0.15)
        assert await queue.renew(lease)
        assert await queue._call(queue._stale("w-2")) is None


async def test_a_lease_that_ran_out_is_kept_if_nobody_wanted_it(open_queue: OpenQueue) -> None:
    queue = open_queue(lease_s=SHORT_S)
    await queue.submit(JOB)
    lease = await claimed(queue)
    await asyncio.sleep(2 * SHORT_S)
    assert await queue.renew(lease)


async def test_who_has_lost_the_lease_can_neither_renew_nor_settle(open_queue: OpenQueue) -> None:
    queue = open_queue(lease_s=SHORT_S)
    await queue.submit(JOB)
    first, second = await claimed(queue, "w-1"), await claimed(queue, "w-2")
    assert not await queue.renew(first)
    assert not await queue.settle(first, failed="too late")
    assert await queue.counts() == Counts(0, 1, 0)
    assert await queue.settle(second)
    assert not await queue.renew(second)
    assert await queue.counts() == Counts(0, 0, 0)


async def test_a_redis_that_lost_everything_ends_the_lease_and_takes_new_queries(queue: Queue, redis: Redis) -> None:
    await queue.submit(JOB)
    lease = await claimed(queue)
    await redis.flushall()
    assert not await queue.renew(lease)
    assert not await queue.settle(lease)
    assert await queue.claim("w-1") is None
    await queue.submit(JOB)
    assert (await claimed(queue)).job == JOB


async def test_an_entry_that_cannot_be_read_does_not_stop_the_others(queue: Queue, redis: Redis) -> None:
    await queue.claim("w-1")
    await redis.xadd(queue_key(), {"job": "{"})
    await queue.submit(JOB)
    assert (await claimed(queue)).job == JOB
    assert await queue.counts() == Counts(0, 1, 0)


async def test_a_dead_worker_is_forgotten_and_a_busy_one_is_not(queue: Queue, redis: Redis, monkeypatch) -> None:
    monkeypatch.setattr("kitbash_ray.queue.FORGET_MS", 0)
    for name in ("idle", "busy"):
        await queue.submit(Job(Query("?", id=f"q_{name}")))
    idle, _ = await claimed(queue, "idle"), await claimed(queue, "busy")
    await queue.settle(idle)
    await asyncio.sleep(0.01)
    await queue.forget_consumers()
    assert [consumer["name"] for consumer in await redis.xinfo_consumers(queue_key(), "front_doors")] == [b"busy"]


async def test_the_time_that_a_query_waits_is_not_taken_from_its_own(queue: Queue) -> None:
    await queue.submit(Job(Query("?", id="q_1", asked_at=1000.0, deadline_s=2.0)))
    query = (await claimed(queue)).query
    assert query.asked_at == 1000.0
    assert query.deadline_s is not None
    assert 0 < query.deadline_s - (time.time() - query.asked_at) <= 2.0


# Dead letters


async def dead(queue: Queue, recorder: Recorder, lease: Lease) -> None:
    await record(recorder, finish(lease.attempt, status="failed"))
    assert await queue.settle(lease, failed="every layer failed")


async def test_a_query_that_failed_lies_among_the_dead_letters_with_its_reason(
    redis: Redis, redis_url: str, queue: Queue, open_recorder: OpenRecorder
) -> None:
    await queue.submit(JOB)
    await dead(queue, open_recorder(redis_url), await claimed(queue))
    (letter,) = await queue.dead_letters()
    assert (letter.query_id, letter.reason, letter.attempts, letter.job) == ("q_1", "every layer failed", 1, JOB)
    assert await queue.counts() == Counts(0, 0, 1)
    assert await redis.hget(query_key("q_1"), "state") == b"failed"


@pytest.mark.parametrize("expired", [False, True], ids=["in time", "after its query expired"])
async def test_a_requeued_query_keeps_its_id_and_gets_attempts_anew(
    expired: bool, redis: Redis, redis_url: str, queue: Queue, open_recorder: OpenRecorder
) -> None:
    recorder = open_recorder(redis_url)
    await queue.submit(JOB)
    first = await claimed(queue)
    await dead(queue, recorder, first)
    if expired:
        await redis.delete(query_key("q_1"), events_key("q_1"))
    # When it is queued again
    assert await queue.requeue("q_1")
    assert await queue.counts() == Counts(1, 0, 0)
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert (state.state, state.answer, state.finished_at, state.text) == ("queued", None, None, "What is ATP?")
    assert await redis.ttl(query_key("q_1")) == -1
    # Then what its first life left behind is refused, and it ends as any other
    again = await claimed(queue)
    assert again.attempt > first.attempt + 1
    assert again.claims == 1
    await record(recorder, *life_of(first.attempt, "stale"), *life_of(again.attempt))
    events = await Blackboard(redis).events("q_1")
    assert events[-4:] == life_of(again.attempt)
    assert len(events) == (4 if expired else 5)
    assert await redis.hget(query_key("q_1"), "state") == b"answered"


async def test_a_dead_letter_is_requeued_once(queue: Queue, open_queue: OpenQueue, redis_url: str, open_recorder) -> None:
    await queue.submit(JOB)
    await dead(queue, open_recorder(redis_url), await claimed(queue))
    told = await asyncio.gather(*(open_queue().requeue("q_1") for _ in range(5)))
    assert sorted(told) == [False] * 4 + [True]
    assert await queue.counts() == Counts(1, 0, 0)


async def test_a_dropped_letter_is_gone(queue: Queue, redis_url: str, open_recorder: OpenRecorder) -> None:
    await queue.submit(JOB)
    await dead(queue, open_recorder(redis_url), await claimed(queue))
    assert await queue.drop("q_1")
    assert not await queue.drop("q_1")
    assert not await queue.requeue("q_1")
    assert await queue.dead_letters() == []


async def test_there_are_never_too_many_dead_letters(queue: Queue, redis: Redis) -> None:
    await redis.hset(dead_letters_key(), mapping={f"q_{number:05}": b"x" for number in range(MAX_DEAD)})
    await queue.submit(JOB)
    assert await queue.settle(await claimed(queue), failed="every layer failed")
    assert (await queue.counts()).dead == MAX_DEAD


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda queue: queue.submit(JOB), id="submit"),
        pytest.param(lambda queue: queue.claim("w"), id="claim"),
        pytest.param(lambda queue: queue.renew(Lease(JOB, "1-1", "w", 1, 1, False)), id="renew"),
        pytest.param(lambda queue: queue.settle(Lease(JOB, "1-1", "w", 1, 1, False)), id="settle"),
        pytest.param(Queue.counts, id="counts"),
        pytest.param(Queue.dead_letters, id="dead letters"),
        pytest.param(lambda queue: queue.requeue("q_1"), id="requeue"),
        pytest.param(lambda queue: queue.drop("q_1"), id="drop"),
    ],
)
async def test_a_redis_that_is_away_is_a_store_error(use, open_queue: OpenQueue) -> None:
    with pytest.raises(StoreError, match="Redis does not answer"):
        await use(open_queue("unix:///tmp/kitbash-nothing-here.sock"))
