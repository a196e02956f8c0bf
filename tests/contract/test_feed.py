"""Following the diagnostic feed of a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from kitbash_ray import feed as module
from kitbash_ray.errors import StoreError
from kitbash_ray.feed import Feed
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.types import Event

from .conftest import KINDS

Life = Callable[..., list[Event]]
OpenRecorder = Callable[..., Recorder]


@pytest.fixture(params=KINDS)
def redis_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def feed(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    monkeypatch.setattr(module, "BLOCK_MS", 50)
    client = connect(redis_url)
    yield Feed(client)
    await client.aclose()


async def record(recorder: Recorder, events: list[Event]) -> None:
    for event in events:
        recorder.append(event)
    await recorder.flush()


async def take(feed: Feed, count: int, after: str = "0") -> list[tuple[str, Event]]:
    found: list[tuple[str, Event]] = []
    async with aclosing(feed.follow(after)) as items:
        async for item in items:
            if item:
                found.append(item)
            if len(found) == count:
                break
    return found


async def test_from_the_oldest_every_event_comes_in_order(
    feed: Feed, redis_url: str, open_recorder: OpenRecorder, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_EVENTS", 3)  # several reads
    await record(open_recorder(redis_url), [*life("q_1"), *life("q_2")])
    found = await take(feed, 14)
    assert [event for _, event in found] == [*life("q_1"), *life("q_2")]
    assert [name for name, _ in found] == sorted({name for name, _ in found}, key=lambda name: tuple(map(int, name.split("-"))))


async def test_one_can_go_on_where_one_left_off(feed: Feed, redis_url: str, open_recorder: OpenRecorder, life: Life) -> None:
    await record(open_recorder(redis_url), life())
    first = await take(feed, 3)
    rest = await take(feed, 4, after=first[-1][0])
    assert [event for _, event in (*first, *rest)] == life()


async def test_from_now_on_means_nothing_that_was_before(
    feed: Feed, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    recorder = open_recorder(redis_url)
    await record(recorder, life("q_old"))
    async with aclosing(feed.follow()) as items:
        assert await anext(items) is None  # nothing happens
        await record(recorder, life("q_new"))
        assert [(item and item[1]) for item in [await anext(items) for _ in range(7)]] == life("q_new")


async def test_the_very_first_event_of_a_redis_is_seen(
    feed: Feed, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    async with aclosing(feed.follow()) as items:
        assert await anext(items) is None
        await record(open_recorder(redis_url), life()[:1])
        assert await anext(items) is not None


async def test_nothing_is_missed_between_two_reads(feed: Feed, redis_url: str, open_recorder: OpenRecorder, life: Life) -> None:
    recorder = open_recorder(redis_url)
    async with aclosing(feed.follow()) as items:
        await anext(items)
        for number in range(5):
            await record(recorder, life(f"q_{number}")[:1])  # while nobody reads
        seen = [await anext(items) for _ in range(5)]
    assert [item and item[1].query_id for item in seen] == [f"q_{number}" for number in range(5)]


async def test_two_followers_see_the_same(feed: Feed, redis_url: str, open_recorder: OpenRecorder, life: Life) -> None:
    other = connect(redis_url)
    following = asyncio.gather(take(feed, 7), take(Feed(other), 7))
    await record(open_recorder(redis_url), life())
    one, two = await asyncio.wait_for(following, 10)
    assert one == two
    await other.aclose()


async def test_a_stop_of_redis_is_a_store_error(own_redis) -> None:
    client = connect(own_redis.url)
    async with aclosing(Feed(client).follow()) as items:
        assert await anext(items) is None
        own_redis.stop()
        with pytest.raises(StoreError, match="Redis does not answer"):
            await anext(items)
    await client.aclose()


@pytest.mark.parametrize("after", ["$", "0"])
async def test_a_redis_that_is_away_is_a_store_error(after: str) -> None:
    client = connect("unix:///tmp/kitbash-nothing-here.sock")
    with pytest.raises(StoreError, match="Redis does not answer"):
        await anext(Feed(client).follow(after))
    await client.aclose()
