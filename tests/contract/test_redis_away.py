"""Events while Redis is dead, stands still, refuses or cannot be reached: nobody waits long, and afterwards all is there."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from kitbash_ray import recorder as module
from kitbash_ray import spool as spool_module
from kitbash_ray.blackboard import Blackboard
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.types import Event, decode, encode

from .recorded import in_feed, in_query, numbered, record
from .redis_servers import Link, Server, frozen

Life = Callable[..., list[Event]]
OpenRecorder = Callable[..., Recorder]
Start = Callable[..., Server]


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a redis-server of this test with the given options."""
    started: list[Server] = []

    def starts(*options: str, folder: Path = tmp_path) -> Server:
        started.append(Server(folder, *options))
        return started[-1]

    yield starts
    for server in started:
        server.kill()


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Redis]:
    client = connect(url)
    yield client
    await client.aclose()


async def caught_up(recorder: Recorder) -> None:
    await asyncio.wait_for(recorder.caught_up(), 20)
    assert recorder.healthy


def ends_at_once(call: Coroutine[None, None, None]) -> bool:
    """Whether a coroutine runs to its end without waiting for anything."""
    try:
        call.send(None)
    except StopIteration:
        return True
    call.close()
    return False


def spooled(folder: Path) -> list[Event]:
    return [decode(Event, line) for path in sorted(folder.glob("spool/*.jsonl")) for line in path.read_bytes().splitlines()]


def leave_behind(folder: Path, content: bytes) -> None:
    """Put a file where a process would have left it that was killed."""
    (folder / "spool").mkdir()
    (folder / "spool" / "1-1.jsonl").write_bytes(content)


def lines(events: list[Event]) -> bytes:
    return b"".join(encode(event) + b"\n" for event in events)


async def test_while_redis_is_dead_events_are_kept_and_written_in_order_once_it_is_back(
    own_redis, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    recorder = open_recorder(own_redis.url)
    await record(recorder, life("q_1"))
    # When Redis stops, events go to the spool, behind those that it may not have kept
    own_redis.stop()
    await record(recorder, life("q_2"))
    await record(recorder, life("q_3"))
    assert not recorder.healthy
    assert spooled(tmp_path) == [*life("q_1"), *life("q_2"), *life("q_3")]
    # And when it is back, they are written by themselves, in order and once
    own_redis.start()
    await caught_up(recorder)
    await record(recorder, life("q_4"))
    assert spooled(tmp_path) == []
    async with client_of(own_redis.url) as redis:
        assert await in_feed(redis) == [event for name in ("q_1", "q_2", "q_3", "q_4") for event in life(name)]
        assert await in_query(redis, "q_2") == life("q_2")
        assert await redis.hget("kitbash:query:q_3", "state") == b"answered"


async def test_while_redis_stands_still_only_the_first_waits_and_all_is_there_afterwards(
    start: Start, open_recorder: OpenRecorder, life: Life
) -> None:
    server = start()
    recorder = open_recorder(server.url)
    await record(recorder, life("q_0"))
    with frozen(server.process.pid):
        # The first waits, but not for as long as the call itself
        for event in life("q_1"):
            recorder.append(event)
        await asyncio.wait_for(recorder.flush(), 4 * module.PATIENCE_S)
        assert recorder.trouble is not None
        # From then on nobody waits
        for number in range(2, 50):
            for event in life(f"q_{number}"):
                recorder.append(event)
            assert ends_at_once(recorder.flush())
    await caught_up(recorder)
    async with client_of(server.url) as redis:
        assert await in_feed(redis) == [event for number in range(50) for event in life(f"q_{number}")]
        assert await in_query(redis, "q_1") == life("q_1")


async def test_many_that_flush_while_redis_stands_still_wait_no_longer_than_one(
    start: Start, open_recorder: OpenRecorder
) -> None:
    server = start()
    recorder = open_recorder(server.url)
    await record(recorder, numbered(1, "q_0"))
    with frozen(server.process.pid):
        flushes = []
        for number in range(1, 20):
            recorder.append(numbered(1, f"q_{number}")[0])
            flushes.append(asyncio.create_task(recorder.flush()))
        await asyncio.wait_for(asyncio.gather(*flushes), 4 * module.PATIENCE_S)
    await caught_up(recorder)
    async with client_of(server.url) as redis:
        assert [event.query_id for event in await in_feed(redis)] == [f"q_{number}" for number in range(20)]


async def test_while_a_reply_is_late_nobody_is_told_that_things_are_recorded(
    start: Start, open_recorder: OpenRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 60.0)
    server = start()
    recorder = open_recorder(server.url)
    await record(recorder, numbered(1, "q_0"))
    with frozen(server.process.pid):
        recorder.append(numbered(1)[0])
        flushing = asyncio.create_task(recorder.flush())
        while recorder.healthy:
            await asyncio.wait({flushing}, timeout=0.01)
        assert recorder.trouble is None
        assert not flushing.done()
    await flushing
    assert recorder.healthy


async def test_what_comes_late_and_again_changes_nothing(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    # Given two whole lives, and a part of the first in the spool of a process that died
    await record(open_recorder(redis_url), [*life("q_1"), *life("q_2")])
    before = await everything(redis)
    leave_behind(tmp_path, lines(life("q_1")[:4]))
    # When the next process writes it
    await caught_up(open_recorder(redis_url))
    # Then neither the feed, nor a state, nor what layers said, nor how long anything lives is another
    assert await everything(redis) == before


async def everything(redis: Redis) -> dict[bytes, bytes]:
    return {key: await redis.dump(key) for key in await redis.keys()}


async def test_what_comes_late_with_something_new_adds_only_that(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    await record(open_recorder(redis_url), life()[:4])
    leave_behind(tmp_path, lines(life()))
    await caught_up(open_recorder(redis_url))
    assert await in_feed(redis) == await in_query(redis) == life()
    assert await redis.hget("kitbash:query:q_1", "state") == b"answered"


async def test_a_new_process_writes_what_the_one_before_left(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    leave_behind(tmp_path, lines(life("q_1")))
    recorder = open_recorder(redis_url)
    await record(recorder, life("q_2"))
    await caught_up(recorder)
    assert await in_feed(redis) == [*life("q_1"), *life("q_2")]
    assert spooled(tmp_path) == []


async def test_a_process_leaves_the_spool_of_a_living_one_alone(own_redis, open_recorder: OpenRecorder, tmp_path: Path) -> None:
    first, second = open_recorder(own_redis.url), open_recorder(own_redis.url)
    own_redis.stop()
    await record(first, numbered(3, "q_1"))
    await record(second, numbered(3, "q_2"))
    assert len(list((tmp_path / "spool").iterdir())) == 2
    own_redis.start()
    await asyncio.gather(caught_up(first), caught_up(second))
    async with client_of(own_redis.url) as redis:
        for name in ("q_1", "q_2"):
            assert await in_query(redis, name) == numbered(3, name)
        assert len(await in_feed(redis)) == 6


async def test_a_full_spool_loses_the_newest_and_stops_nobody(
    own_redis, open_recorder: OpenRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SPOOL_BYTES", 500)
    recorder = open_recorder(own_redis.url)
    own_redis.stop()
    for number in range(10):
        await record(recorder, numbered(1, f"q_{number}"))
    kept = [event.query_id for event in spooled(tmp_path)]
    assert 0 < len(kept) < 10
    assert kept == [f"q_{number}" for number in range(len(kept))]


async def test_a_spool_that_was_cut_short_does_not_stop_recording(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life, tmp_path: Path
) -> None:
    leave_behind(tmp_path, lines(life("q_1"))[:-40])  # its process was killed in the middle of a line
    recorder = open_recorder(redis_url)
    await record(recorder, life("q_2"))
    await caught_up(recorder)
    assert await in_feed(redis) == [*life("q_1")[:-1], *life("q_2")]


async def test_a_spool_that_cannot_be_written_loses_events_and_stops_nobody(
    own_redis, open_recorder: OpenRecorder, tmp_path: Path
) -> None:
    (tmp_path / "spool").write_text("no folder")
    recorder = open_recorder(own_redis.url)
    own_redis.stop()
    await record(recorder, numbered(1))
    assert not recorder.healthy
    own_redis.start()
    await caught_up(recorder)


async def test_a_replay_that_is_interrupted_writes_nothing_twice(
    start: Start, open_recorder: OpenRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a spool of many batches, and a Redis that dies and comes back while they are written
    monkeypatch.setattr(module, "BATCH_EVENTS", 10)
    server = start("--appendonly", "yes")
    leave_behind(tmp_path, lines(numbered(3000)))
    recorder = open_recorder(server.url, feed_maxlen=10_000)
    async with client_of(server.url) as redis:
        await redis.xread({"kitbash:feed": "0"}, block=5000)
    server.kill()
    server.start()
    await caught_up(recorder)
    async with client_of(server.url) as redis:
        assert await in_query(redis) == await in_feed(redis) == numbered(3000)


async def test_a_full_memory_is_named_and_ends_when_there_is_room(
    start: Start, open_recorder: OpenRecorder, life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    recorder = open_recorder(server.url)
    await record(recorder, life("q_1"))
    server.told("CONFIG", "SET", "maxmemory", "1")
    await record(recorder, life("q_2"))
    assert "Redis is full" in str(recorder.trouble)
    async with client_of(server.url) as redis:  # reading goes on
        state = await Blackboard(redis).query("q_1")
        assert state is not None
        assert await Blackboard(redis).query("q_2") is None
    await asyncio.sleep(5 * module.RETRY_S)
    assert [entry.getMessage() for entry in caplog.records if "full" in entry.getMessage()] == [caplog.records[0].getMessage()]
    server.told("CONFIG", "SET", "maxmemory", "0")
    await caught_up(recorder)
    async with client_of(server.url) as redis:
        assert await in_feed(redis) == [*life("q_1"), *life("q_2")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small file system can only be made by root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_is_named_and_ends_when_there_is_room(
    small_disk: Path, start: Start, open_recorder: OpenRecorder, life: Life
) -> None:
    server = start("--appendonly", "yes", folder=small_disk)
    recorder = open_recorder(server.url, feed_maxlen=10_000)
    await record(recorder, life("q_0"))
    rest = small_disk / "rest"
    with rest.open("wb") as file, pytest.raises(OSError, match="No space left"):
        file.write(bytes(8 << 20))
    events, number = life("q_0"), 0
    while recorder.trouble is None:  # Redis notices after it has confirmed a write; the next one is refused
        number += 1
        events += life(f"q_{number}")
        await record(recorder, life(f"q_{number}"))
        assert number < 10_000
    assert "Redis cannot write to its disk" in str(recorder.trouble)
    rest.unlink()
    await caught_up(recorder)
    async with client_of(server.url) as redis:
        assert await in_feed(redis) == events


async def test_a_wrong_password_is_named_and_ends_when_it_is_right(
    start: Start, open_recorder: OpenRecorder, life: Life
) -> None:
    server = start()
    recorder = open_recorder(f"redis://:right@{server.place}")
    server.told("CONFIG", "SET", "requirepass", "other")
    await record(recorder, life())
    assert recorder.trouble is not None
    assert recorder.trouble.refused_login
    assert "Redis refuses the password" in str(recorder.trouble)
    server.password = "other"
    server.told("CONFIG", "SET", "requirepass", "right")
    await caught_up(recorder)
    async with client_of(f"redis://:right@{server.place}") as redis:
        assert await in_feed(redis) == life()


async def test_a_master_that_became_a_replica_is_named_and_written_to_when_it_is_master_again(
    start: Start, open_recorder: OpenRecorder, life: Life
) -> None:
    server = start()
    recorder = open_recorder(server.url)
    await record(recorder, life("q_1"))
    server.told("REPLICAOF", "127.0.0.1", "1")
    await record(recorder, life("q_2"))
    assert "Redis is a replica" in str(recorder.trouble)
    server.told("REPLICAOF", "NO", "ONE")
    await caught_up(recorder)
    async with client_of(server.url) as redis:
        assert await in_feed(redis) == [*life("q_1"), *life("q_2")]


async def test_behind_a_cut_link_only_the_first_waits_and_all_is_there_afterwards(
    start: Start, open_recorder: OpenRecorder, life: Life
) -> None:
    server = start()
    async with Link(server.port) as link:
        recorder = open_recorder(link.url)
        await record(recorder, life("q_0"))
        link.open.clear()
        await asyncio.wait_for(record(recorder, life("q_1")), 4 * module.PATIENCE_S)
        for event in life("q_2"):
            recorder.append(event)
        assert ends_at_once(recorder.flush())
        link.open.set()
        await caught_up(recorder)
        await recorder.close()
    async with client_of(server.url) as redis:
        assert await in_feed(redis) == [event for number in range(3) for event in life(f"q_{number}")]
