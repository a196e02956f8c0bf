"""One cascade with a real recorder: what is in Redis at which moment, and what is said about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio import Redis

from actors.orchestrator import Orchestrator
from kitbash_ray import recorder as module
from kitbash_ray.blackboard import Blackboard
from kitbash_ray.calibration import Calibration
from kitbash_ray.cascade import Cascade
from kitbash_ray.feed import Feed
from kitbash_ray.policy import Calibrated
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.testing import EchoLayer, FailingLayer, ScriptedLayer, ScriptedStreamingLayer, SlowLayer
from kitbash_ray.types import Event, Layer, LayerResult, Query, decode

OpenRecorder = Callable[..., Recorder]
Open = Callable[..., Orchestrator]

FOUND = LayerResult("kobold", "answered", text="found", confidence=1.0)
NOTHING = LayerResult("grain", "abstained", reason="nothing near")


@pytest.fixture
async def open_orchestrator(open_recorder: OpenRecorder) -> AsyncIterator[Open]:
    """An orchestrator over the given layers, put together as the front door does it."""
    clients: list[Redis] = []

    def opens(url: str, *layers: Layer, timeout: float = 60.0) -> Orchestrator:
        clients.append(connect(url))
        policy = Calibrated(Calibration("test", 1.0, 1.0, {}))
        cascade = Cascade(layers, policy, timeouts_s={layer.name: timeout for layer in layers})
        return Orchestrator(cascade, open_recorder(url), Blackboard(clients[-1]), Feed(clients[-1]))

    yield opens
    for client in clients:
        await client.aclose()


class Looking:
    """A remote layer that looks at Redis when it is asked."""

    name = "kobold"

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.seen: dict[bytes, bytes] = {}
        self.request: bytes | None = None

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        self.seen = await self.redis.hgetall(f"kitbash:query:{query.id}")
        self.request = await self.redis.get(f"kitbash:query:{query.id}:kobold:request")
        return FOUND


async def test_a_remote_layer_is_asked_when_the_blackboard_says_so(
    redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    layer, query = Looking(redis), Query("What is ATP?", id="q_1")
    await open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), layer).ask(query)
    assert layer.request is not None
    assert decode(Query, layer.request) == query
    assert (layer.seen[b"state"], layer.seen[b"layer"], layer.seen[b"text"]) == (b"running", b"kobold", b"What is ATP?")


async def test_an_answer_of_a_remote_layer_is_recorded_before_it_is_given(
    redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    orchestrator = open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), ScriptedLayer("kobold", FOUND))
    answer = await orchestrator.ask(Query("?", id="q_1"))
    state = await Blackboard(redis).query("q_1")
    assert answer.recorded
    assert state is not None
    assert (state.state, state.answer) == ("answered", answer)


async def test_an_answer_inside_the_process_is_recorded_soon(redis: Redis, redis_url: str, open_orchestrator: Open) -> None:
    orchestrator = open_orchestrator(redis_url, EchoLayer("grain"))
    answer = await orchestrator.ask(Query("?", id="q_1"))
    await orchestrator.recorder.flush()
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert state.answer == answer


@pytest.mark.parametrize(
    "layers",
    [
        (EchoLayer("grain"),),
        (ScriptedLayer("grain", NOTHING), ScriptedStreamingLayer("kobold", "fo", "und", FOUND)),
        (ScriptedLayer("grain", NOTHING), FailingLayer("kobold")),
        (FailingLayer("grain"),),
    ],
    ids=["answered", "streamed", "abstained", "failed"],
)
async def test_the_recorded_events_are_those_that_were_given(
    layers: tuple[Layer, ...], redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    orchestrator = open_orchestrator(redis_url, *layers)
    async with aclosing(orchestrator.events(Query("?", id="q_1"))) as events:
        given = [event async for event in events]
    await orchestrator.recorder.flush()
    assert await Blackboard(redis).events("q_1") == given
    assert given[-1].answer is not None
    assert orchestrator.in_flight == 0


async def test_while_redis_is_away_answers_go_on_and_say_that_they_are_not_recorded(
    own_redis, open_orchestrator: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    orchestrator = open_orchestrator(own_redis.url, ScriptedLayer("grain", NOTHING), ScriptedLayer("kobold", FOUND))
    assert (await orchestrator.ask(Query("?", id="q_1"))).recorded
    # When Redis is away
    own_redis.stop()
    away = await orchestrator.ask(Query("?", id="q_2"))
    assert (away.status, away.recorded) == ("answered", False)
    assert list((tmp_path / "spool").iterdir())
    # When it is back, the next answer is recorded, and so is the one in between
    own_redis.start()
    await asyncio.wait_for(orchestrator.recorder.caught_up(), 20)
    assert (await orchestrator.ask(Query("?", id="q_3"))).recorded
    async with Redis.from_url(own_redis.url) as redis:
        assert [await redis.hget(f"kitbash:query:{name}", "state") for name in ("q_1", "q_2", "q_3")] == [b"answered"] * 3


async def test_whoever_closes_the_stream_early_leaves_a_cancelled_query(
    redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    layer = ScriptedStreamingLayer("kobold", "a", "b", "c", FOUND)
    orchestrator = open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), layer)
    async with aclosing(orchestrator.events(Query("?", id="q_1"))) as events:
        async for event in events:
            if event.kind == "layer.delta":
                break
    await orchestrator.recorder.flush()
    await asyncio.wait_for(layer.closed.wait(), 5)
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert state.state == "cancelled"
    assert state.answer is not None
    assert state.answer.status == "cancelled"
    assert orchestrator.in_flight == 0


async def test_whoever_goes_while_a_layer_works_leaves_a_cancelled_query_and_a_free_layer(
    redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    slow = SlowLayer("kobold")
    orchestrator = open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), slow)
    task = asyncio.create_task(orchestrator.ask(Query("?", id="q_1")))
    await asyncio.wait_for(slow.started.wait(), 5)
    assert orchestrator.in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await orchestrator.recorder.flush()
    assert slow.cancelled.is_set()
    assert await redis.hget("kitbash:query:q_1", "state") == b"cancelled"
    events = await Blackboard(redis).events("q_1")
    assert [event.kind for event in events].count("query.finished") == 1
    assert [event.seq for event in events] == sorted(event.seq for event in events)


async def test_a_stream_that_is_left_after_its_answer_is_not_cancelled(
    redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    orchestrator = open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), ScriptedLayer("kobold", FOUND))
    async with aclosing(orchestrator.events(Query("?", id="q_1"))) as events:
        async for event in events:
            if event.answer:
                break
    await orchestrator.recorder.flush()
    assert await redis.hget("kitbash:query:q_1", "state") == b"answered"


class HeldRecorder(Recorder):
    """A recorder whose flushes wait while `hold` is set, as they do when Redis is stuck."""

    hold = False
    held: asyncio.Event

    async def flush(self) -> None:
        if self.hold:
            self.held.set()
            await asyncio.Event().wait()
        await super().flush()


async def test_whoever_goes_while_the_answer_waits_for_redis_leaves_no_query_running(
    redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    # Given an answer that waits for the flush before it
    layer = SlowLayer("kobold")
    orchestrator = open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), layer)
    recorder = orchestrator.recorder
    recorder.__class__ = HeldRecorder
    assert isinstance(recorder, HeldRecorder)
    recorder.held = asyncio.Event()
    task = asyncio.create_task(orchestrator.ask(Query("?", id="q_1")))
    await asyncio.wait_for(layer.started.wait(), 5)
    recorder.hold = True
    layer.release.set()
    await asyncio.wait_for(recorder.held.wait(), 5)
    # When whoever asked goes now
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Then the query is not running any more
    recorder.hold = False
    await recorder.flush()
    assert await redis.hget("kitbash:query:q_1", "state") != b"running"


async def test_many_questions_at_once_are_all_answered_and_recorded(
    redis: Redis, redis_url: str, open_orchestrator: Open
) -> None:
    orchestrator = open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), EchoLayer("kobold"))
    answers = await asyncio.gather(*(orchestrator.ask(Query(f"question {n}", id=f"q_{n}")) for n in range(100)))
    assert [answer.answer for answer in answers] == [f"question {n}" for n in range(100)]
    assert all(answer.recorded for answer in answers)
    states = [await Blackboard(redis).query(f"q_{n}") for n in range(100)]
    assert [state and state.answer for state in states] == answers


async def test_a_timeout_is_on_the_blackboard_as_such(redis: Redis, redis_url: str, open_orchestrator: Open) -> None:
    orchestrator = open_orchestrator(redis_url, ScriptedLayer("grain", NOTHING), SlowLayer("kobold"), timeout=0.02)
    answer = await orchestrator.ask(Query("?", id="q_1"))
    result = decode(LayerResult, await redis.get("kitbash:query:q_1:kobold:result"))
    assert result.outcome == answer.path[1].outcome == "timeout"
    (finished,) = [event for event in await _feed(redis) if event.layer == "kobold" and event.result]
    assert finished.result == result


async def _feed(redis: Redis) -> list[Event]:
    return [decode(Event, fields[b"event"]) for _, fields in await redis.xrange("kitbash:feed")]
