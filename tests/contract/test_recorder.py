"""Writing events: what is in Redis afterwards, whatever kind of Redis it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from kitbash_ray.blackboard import events_key, feed_key
from kitbash_ray.recorder import Recorder
from kitbash_ray.types import Event, LayerResult, Query, decode

from .conftest import KINDS
from .recorded import in_feed, in_query, numbered, record

Life = Callable[..., list[Event]]
OpenRecorder = Callable[..., Recorder]

#: Every key of a finished query, with its type in Redis.
KEYS = {
    "query:q_1": "hash",
    "query:q_1:events": "stream",
    "query:q_1:grain:request": "string",
    "query:q_1:grain:result": "string",
    "query:q_1:kobold:request": "string",
    "query:q_1:kobold:result": "string",
    "feed": "stream",
}


@pytest.fixture(params=KINDS)
def redis_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_query_leaves_exactly_the_keys_of_the_table(
    redis: Redis, redis_url: str, prefix: str, open_recorder: OpenRecorder, life: Life
) -> None:
    await record(open_recorder(redis_url), life())
    assert {key.decode().removeprefix(prefix): (await redis.type(key)).decode() for key in await redis.keys()} == KEYS


async def test_everything_of_a_query_ends_and_the_feed_does_not(
    redis: Redis, redis_url: str, prefix: str, open_recorder: OpenRecorder, life: Life
) -> None:
    await record(open_recorder(redis_url, ttl_s=100), life())
    lives = {key: await redis.ttl(prefix + key) for key in KEYS}
    assert lives.pop("feed") == -1
    assert all(0 < seconds <= 100 for seconds in lives.values())


async def test_the_parts_say_what_happened(
    redis: Redis, redis_url: str, prefix: str, open_recorder: OpenRecorder, life: Life
) -> None:
    events = life()
    await record(open_recorder(redis_url), events)
    for layer, at in (("grain", 1), ("kobold", 3)):
        assert decode(Query, await redis.get(f"{prefix}query:q_1:{layer}:request")) == events[at].query
    assert decode(LayerResult, await redis.get(f"{prefix}query:q_1:kobold:result")) == events[5].result
    assert set(await redis.hgetall(f"{prefix}query:q_1")) == {
        b"state",
        b"text",
        b"asked_at",
        b"layer",
        b"finished_at",
        b"answer",
    }
    assert await in_query(redis) == await in_feed(redis) == events


async def test_events_are_in_the_order_in_which_they_were_appended(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder
) -> None:
    # Given more than fit into two batches, of two queries in turn
    pairs = zip(numbered(700, "q_1"), numbered(700, "q_2"), strict=True)
    events = [event for pair in pairs for event in pair]
    recorder = open_recorder(redis_url, feed_maxlen=10_000)
    # When flushes meet while they are appended
    flushes = []
    for at, event in enumerate(events):
        recorder.append(event)
        if at % 300 == 0:
            flushes.append(asyncio.create_task(recorder.flush()))
            await asyncio.sleep(0)
    await asyncio.gather(*flushes, recorder.flush())
    assert await in_feed(redis) == events
    assert [event.seq for event in await in_query(redis, "q_2")] == list(range(700))


async def test_after_flush_everything_appended_is_there(redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(redis_url)
    for event in numbered(3):
        recorder.append(event)
        await recorder.flush()
        assert len(await in_feed(redis)) == event.seq + 1
    assert recorder.healthy


async def test_without_flush_events_are_written_by_themselves(
    redis: Redis, redis_url: str, prefix: str, open_recorder: OpenRecorder
) -> None:
    recorder = open_recorder(redis_url)
    for event in numbered(3):
        recorder.append(event)
    found = await redis.xread({feed_key(prefix): "0"}, block=5000)  # waits for the first; a batch is written at once
    assert [decode(Event, fields[b"event"]).seq for _, fields in found[0][1]] == [0, 1, 2]


async def test_closing_writes_what_is_left(redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(redis_url)
    for event in numbered(3):
        recorder.append(event)
    await recorder.close()
    assert len(await in_feed(redis)) == 3


async def test_the_feed_is_capped_and_the_query_is_not(
    redis: Redis, redis_url: str, prefix: str, open_recorder: OpenRecorder
) -> None:
    # `~` lets Redis keep whole nodes of 100 entries
    await record(open_recorder(redis_url, feed_maxlen=100), numbered(1000))
    assert 100 <= await redis.xlen(feed_key(prefix)) <= 200
    assert (await in_feed(redis))[-1].seq == 999
    assert await redis.xlen(events_key("q_1", prefix)) == 1000


@pytest.mark.parametrize(
    ("level", "kept"), [("debug", list(range(7))), ("info", [0, 1, 2, 3, 5, 6]), ("warning", []), ("error", [])]
)
async def test_the_level_filters_the_feed_and_never_the_query(
    level: str, kept: list[int], redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    events = life()
    await record(open_recorder(redis_url, level=level), events)
    assert [event.seq for event in await in_feed(redis)] == kept
    assert await in_query(redis) == events


async def test_a_redis_that_lost_its_scripts_gets_them_again(redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(redis_url)
    await record(recorder, numbered(1, "q_1"))
    await redis.script_flush()
    await record(recorder, numbered(1, "q_2"))
    assert recorder.healthy
    assert len(await in_feed(redis)) == 2
