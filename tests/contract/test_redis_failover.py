"""Another Redis becomes the master, or a cluster's node comes back: recording goes on there, and nothing is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from kitbash_ray import recorder as module
from kitbash_ray.blackboard import Blackboard, heartbeat
from kitbash_ray.config import load_settings
from kitbash_ray.doctor import redis_trouble
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import FAULTS, connect, connect_sync
from kitbash_ray.types import Event

from .recorded import in_feed, in_query, record
from .redis_servers import Cluster, Sentinels, until

Life = Callable[..., list[Event]]
OpenRecorder = Callable[..., Recorder]


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.1)


@pytest.fixture
def trio() -> Iterator[Sentinels]:
    """A master, a replica and three Sentinels of one test, which may kill them."""
    servers = Sentinels()
    yield servers
    servers.close()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    servers = Cluster()
    yield servers
    servers.close()


async def recorded_meanwhile(recorder: Recorder, life: Life, change: Callable[[], None]) -> list[Event]:
    """Record one life after the other, `change` something, and go on until Redis has them all."""
    events: list[Event] = []

    async def go_on(lives: int) -> None:
        for _ in range(lives):
            more = life(f"q_{len(events)}")
            events.extend(more)
            await record(recorder, more)

    await go_on(20)
    changing = asyncio.get_running_loop().run_in_executor(None, change)
    while not changing.done():
        await go_on(1)
        await asyncio.sleep(0.01)
    await changing
    await asyncio.wait_for(recorder.caught_up(), 30)
    await go_on(20)
    await asyncio.wait_for(recorder.caught_up(), 30)
    assert recorder.healthy
    return events


async def assert_recorded(url: str, events: list[Event]) -> None:
    redis = connect(url)
    assert await in_feed(redis) == events
    for query_id in {event.query_id for event in events}:
        assert await in_query(redis, query_id) == [event for event in events if event.query_id == query_id]
        state = await Blackboard(redis).query(query_id)
        assert state is not None
        assert state.state == "answered"
    await redis.aclose()


async def test_when_the_master_is_killed_everything_is_at_the_one_that_follows(
    trio: Sentinels, open_recorder: OpenRecorder, life: Life
) -> None:
    def kill() -> None:
        trio.master.kill()
        until(lambda: trio.replica.told("ROLE")[0] == "master", "the replica is master")

    recorder = open_recorder(trio.url, feed_maxlen=100_000)
    events = await recorded_meanwhile(recorder, life, kill)
    await assert_recorded(trio.url, events)
    await assert_recorded(trio.replica.url, events)


async def test_a_master_that_is_demoted_is_left_for_the_new_one(
    trio: Sentinels, open_recorder: OpenRecorder, life: Life
) -> None:
    def demote() -> None:
        trio.master.told("CLIENT", "PAUSE", "30000", "WRITE")  # or it would confirm what it has to forget
        trio.sentinels[0].told("SENTINEL", "FAILOVER", "kitbash")
        until(lambda: trio.replica.told("ROLE")[0] == "master", "the replica is master")
        trio.master.told("REPLICAOF", "127.0.0.1", str(trio.replica.port))
        trio.master.told("CLIENT", "UNPAUSE")

    recorder = open_recorder(trio.url, feed_maxlen=100_000)
    events = await recorded_meanwhile(recorder, life, demote)
    await assert_recorded(trio.url, events)
    await assert_recorded(trio.replica.url, events)


def test_hearts_beat_on_at_the_new_master(trio: Sentinels) -> None:
    with connect_sync(trio.url) as client:
        heartbeat(client, "kobold", {"state": "ready"})
        trio.master.kill()
        with pytest.raises(FAULTS):
            heartbeat(client, "kobold", {"state": "ready"})

        def beats() -> bool:
            heartbeat(client, "kobold", {"state": "back"})
            return True

        until(beats, "the heart beats again")
    assert trio.replica.told("HGET", "kitbash:actor:kobold", "state") == "back"


async def test_a_cluster_whose_node_was_killed_gets_everything_when_it_is_back(
    own_cluster: Cluster, open_recorder: OpenRecorder, life: Life
) -> None:
    def restart() -> None:
        own_cluster.node.kill()
        own_cluster.node.start()

    recorder = open_recorder(own_cluster.url, feed_maxlen=100_000)
    events = await recorded_meanwhile(recorder, life, restart)
    await assert_recorded(own_cluster.url, events)


async def test_with_passwords_everything_is_recorded_too(open_recorder: OpenRecorder, life: Life) -> None:
    for kind in (Sentinels, Cluster):
        servers = kind("s3cret")
        try:
            await record(open_recorder(servers.url), life())
            await assert_recorded(servers.url, life())
            assert redis_trouble(load_settings(redis_url=servers.url)) is None
            wrong = redis_trouble(load_settings(redis_url=servers.url.replace(":s3cret@", ":guessed@")))
            assert wrong is not None
            assert wrong.refused_login
        finally:
            servers.close()


async def test_who_is_called_off_is_heard_in_every_kind(sentinels: Sentinels, redis_cluster: Cluster) -> None:
    for url in (sentinels.url, redis_cluster.url):
        hearing, calling = connect(url), connect(url)
        heard = asyncio.ensure_future(anext(Blackboard(hearing).called_off()))
        while not heard.done():  # until it listens, nobody hears
            await Blackboard(calling).call_off("q_1")
            await asyncio.wait({heard}, timeout=0.05)
        assert await heard == "q_1"
        await hearing.aclose()
        await calling.aclose()
