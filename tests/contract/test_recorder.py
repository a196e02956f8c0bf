"""Writing events: what is in Redis afterwards, also when Redis was away in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from kitbash_ray import recorder as module
from kitbash_ray.recorder import Recorder
from kitbash_ray.types import Event, LayerResult, Query, decode, encode

Life = Callable[..., list[Event]]
OpenRecorder = Callable[..., Recorder]

FEED = "kitbash:feed"
#: Every key of a finished query, with its type in Redis.
KEYS = {
    "kitbash:query:q_1": "hash",
    "kitbash:query:q_1:events": "stream",
    "kitbash:query:q_1:grain:request": "string",
    "kitbash:query:q_1:grain:result": "string",
    "kitbash:query:q_1:kobold:request": "string",
    "kitbash:query:q_1:kobold:result": "string",
    FEED: "stream",
}


async def events_in(redis: Redis, stream: str) -> list[Event]:
    return [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(stream)]


def numbered(count: int, query_id: str = "q_1") -> list[Event]:
    return [Event(query_id, seq, float(seq), "layer.delta", layer="kobold", text=f"number {seq}") for seq in range(count)]


async def record(recorder: Recorder, events: list[Event]) -> None:
    for event in events:
        recorder.append(event)
    await recorder.flush()


async def test_a_query_leaves_exactly_the_keys_of_the_table(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    await record(open_recorder(redis_url), life())
    assert {key.decode(): (await redis.type(key)).decode() for key in await redis.keys()} == KEYS


async def test_everything_of_a_query_ends_and_the_feed_does_not(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    await record(open_recorder(redis_url, ttl_s=100), life())
    lives = {key: await redis.ttl(key) for key in KEYS}
    assert lives.pop(FEED) == -1
    assert all(0 < seconds <= 100 for seconds in lives.values())


async def test_the_parts_say_what_happened(redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life) -> None:
    events = life()
    await record(open_recorder(redis_url), events)
    for layer, at in (("grain", 1), ("kobold", 3)):
        assert decode(Query, await redis.get(f"kitbash:query:q_1:{layer}:request")) == events[at].query
    assert decode(LayerResult, await redis.get("kitbash:query:q_1:kobold:result")) == events[5].result
    assert set(await redis.hgetall("kitbash:query:q_1")) == {
        b"state",
        b"text",
        b"asked_at",
        b"layer",
        b"finished_at",
        b"answer",
    }
    assert await events_in(redis, "kitbash:query:q_1:events") == await events_in(redis, FEED) == events


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
    assert await events_in(redis, FEED) == events
    assert [event.seq for event in await events_in(redis, "kitbash:query:q_2:events")] == list(range(700))


async def test_after_flush_everything_appended_is_there(redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(redis_url)
    for event in numbered(3):
        recorder.append(event)
        await recorder.flush()
        assert len(await events_in(redis, FEED)) == event.seq + 1
    assert recorder.healthy


async def test_without_flush_events_are_written_by_themselves(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder
) -> None:
    recorder = open_recorder(redis_url)
    for event in numbered(3):
        recorder.append(event)
    found = await redis.xread({FEED: "0"}, block=5000)  # waits for the first; a batch is written at once
    assert [decode(Event, fields[b"event"]).seq for _, fields in found[0][1]] == [0, 1, 2]


async def test_closing_writes_what_is_left(redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(redis_url)
    for event in numbered(3):
        recorder.append(event)
    await recorder.close()
    assert len(await events_in(redis, FEED)) == 3


async def test_the_feed_is_capped_and_the_query_is_not(redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    # `~` lets Redis keep whole nodes of 100 entries
    await record(open_recorder(redis_url, feed_maxlen=100), numbered(1000))
    assert 100 <= await redis.xlen(FEED) <= 200
    assert (await events_in(redis, FEED))[-1].seq == 999
    assert await redis.xlen("kitbash:query:q_1:events") == 1000


@pytest.mark.parametrize(
    ("level", "kept"), [("debug", list(range(7))), ("info", [0, 1, 2, 3, 5, 6]), ("warning", []), ("error", [])]
)
async def test_the_level_filters_the_feed_and_never_the_query(
    level: str, kept: list[int], redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    events = life()
    await record(open_recorder(redis_url, level=level), events)
    assert [event.seq for event in await events_in(redis, FEED)] == kept
    assert await events_in(redis, "kitbash:query:q_1:events") == events


@pytest.fixture
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)


@pytest.mark.usefixtures("_retry_at_once")
async def test_while_redis_is_away_events_are_kept_and_written_in_order_once_it_is_back(
    own_redis, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    spool = tmp_path / "spool.jsonl"
    recorder = open_recorder(own_redis.url)
    await record(recorder, life("q_1"))
    # When Redis stops, events go to the spool
    own_redis.stop()
    await record(recorder, life("q_2"))
    await record(recorder, life("q_3"))
    assert not recorder.healthy
    assert [decode(Event, line) for line in spool.read_bytes().splitlines()] == [*life("q_2"), *life("q_3")]
    # And when it is back, the next event takes them along, in order and once
    own_redis.start()
    await record(recorder, life("q_4"))
    assert recorder.healthy
    assert not spool.exists()
    async with Redis.from_url(own_redis.url) as redis:
        assert await events_in(redis, FEED) == [event for name in ("q_1", "q_2", "q_3", "q_4") for event in life(name)]
        assert await events_in(redis, "kitbash:query:q_2:events") == life("q_2")
        assert await redis.hget("kitbash:query:q_3", "state") == b"answered"


@pytest.mark.usefixtures("_retry_at_once")
async def test_a_new_process_writes_what_the_one_before_left_in_the_spool(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    (tmp_path / "spool.jsonl").write_bytes(b"".join(encode(event) + b"\n" for event in life("q_1")))
    await record(open_recorder(redis_url), life("q_2"))
    assert await events_in(redis, FEED) == [*life("q_1"), *life("q_2")]
    assert not (tmp_path / "spool.jsonl").exists()


@pytest.mark.usefixtures("_retry_at_once")
async def test_a_redis_that_lost_its_scripts_gets_them_again(redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(redis_url)
    await record(recorder, numbered(1, "q_1"))
    await redis.script_flush()
    await record(recorder, numbered(1, "q_2"))
    assert recorder.healthy
    assert len(await events_in(redis, FEED)) == 2


@pytest.mark.usefixtures("_retry_at_once")
async def test_a_full_spool_loses_the_newest_and_stops_nobody(
    own_redis, open_recorder: OpenRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPOOL_BYTES", 100)
    recorder = open_recorder(own_redis.url)
    own_redis.stop()
    for number in range(10):
        await record(recorder, numbered(1, f"q_{number}"))
    kept = [decode(Event, line).query_id for line in (tmp_path / "spool.jsonl").read_bytes().splitlines()]
    assert 0 < len(kept) < 10
    assert kept == [f"q_{number}" for number in range(len(kept))]


async def test_a_spool_that_was_cut_short_does_not_stop_recording(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    # Given a spool whose writer was killed in the middle of a line
    whole = b"".join(encode(event) + b"\n" for event in life("q_1"))
    (tmp_path / "spool.jsonl").write_bytes(whole[:-40])
    recorder = open_recorder(redis_url)
    await record(recorder, life("q_2"))
    assert await events_in(redis, FEED) == [*life("q_1")[:-1], *life("q_2")]


@pytest.mark.usefixtures("_retry_at_once")
async def test_a_spool_that_cannot_be_written_loses_events_and_stops_nobody(
    own_redis, open_recorder: OpenRecorder, tmp_path: Path
) -> None:
    (tmp_path / "spool.jsonl").mkdir()
    recorder = open_recorder(own_redis.url)
    own_redis.stop()
    await record(recorder, numbered(1))
    assert not recorder.healthy


@pytest.mark.usefixtures("_retry_at_once")
async def test_a_replay_that_is_interrupted_writes_nothing_twice(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a spool of three batches, and a Redis that goes away before the second
    monkeypatch.setattr(module, "BATCH_EVENTS", 10)
    (tmp_path / "spool.jsonl").write_bytes(b"".join(encode(event) + b"\n" for event in numbered(30)))
    recorder = open_recorder(redis_url)
    send, sent = recorder._send, []

    async def failing(batch: list[Event]) -> None:
        sent.append(batch)
        if len(sent) == 2:
            raise OSError("gone")
        await send(batch)

    monkeypatch.setattr(recorder, "_send", failing)
    await record(recorder, numbered(1, "q_2"))
    await record(recorder, numbered(1, "q_3"))
    assert [event.seq for event in await events_in(redis, "kitbash:query:q_1:events")] == list(range(30))


@pytest.mark.usefixtures("_retry_at_once")
async def test_the_spool_is_written_when_redis_is_back_though_nothing_happens(own_redis, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(own_redis.url)
    own_redis.stop()
    await record(recorder, numbered(3))
    own_redis.start()
    async with Redis.from_url(own_redis.url) as redis:
        assert await redis.xread({FEED: "0"}, block=1500)
