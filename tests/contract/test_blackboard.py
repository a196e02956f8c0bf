"""The state of queries and actors, in a real Redis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from kitbash_ray.blackboard import (
    Blackboard,
    actor_key,
    events_key,
    heartbeat,
    layer_key,
    operations,
    passes,
    query_key,
)
from kitbash_ray.errors import StoreError
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect, connect_sync
from kitbash_ray.types import Answer, Event, LayerResult, Query

from .conftest import KINDS

Life = Callable[..., list[Event]]
OpenRecorder = Callable[..., Recorder]


@pytest.fixture(params=KINDS)
def redis_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


#: The states of a query after each event of its life.
STATES = ["running"] * 6 + ["answered"]


def test_keys_are_those_of_the_table() -> None:
    assert query_key("q_1") == "kitbash:query:q_1"
    assert layer_key("q_1", "grain", "result") == "kitbash:query:q_1:grain:result"
    assert events_key("q_1") == "kitbash:query:q_1:events"
    assert actor_key("kobold") == "kitbash:actor:kobold"


async def test_a_query_that_nobody_asked_has_no_state(redis: Redis) -> None:
    assert await Blackboard(redis).query("q_nobody") is None
    assert await Blackboard(redis).events("q_nobody") == []


@pytest.mark.parametrize("count", range(1, 8))
async def test_the_state_of_a_query_is_the_fold_over_its_events(
    count: int, redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    # Given the first events of a life
    recorder, events = open_recorder(redis_url), life()
    for event in events[:count]:
        recorder.append(event)
    await recorder.flush()
    # When another process reads the blackboard
    state = await Blackboard(redis).query("q_1")
    # Then it says what these events say, and no more
    assert state is not None
    assert (state.query_id, state.state, state.asked_at) == ("q_1", STATES[count - 1], 1000.5)
    assert state.layer == (None if count < 2 else "grain" if count < 4 else "kobold")
    assert state.answer == (events[6].answer if count == 7 else None)
    assert state.finished_at == (1006.5 if count == 7 else None)
    assert await Blackboard(redis).events("q_1") == events[:count]


async def test_it_makes_no_difference_whether_events_come_one_by_one_or_together(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    recorder, board = open_recorder(redis_url), Blackboard(redis)
    for event in life("q_1"):
        recorder.append(event)
        await recorder.flush()
    for event in life("q_2"):
        recorder.append(event)
    await recorder.flush()
    one, two = await board.query("q_1"), await board.query("q_2")
    assert one is not None
    assert two is not None
    assert replace(one, query_id="", answer=None) == replace(two, query_id="", answer=None)


async def test_the_text_of_a_question_is_kept_as_asked_but_for_nul(
    redis: Redis, redis_url: str, open_recorder: OpenRecorder, life: Life
) -> None:
    recorder = open_recorder(redis_url)
    recorder.append(life(text="„ü“ \t\r\n'; -- 🦠 \x00 end")[0])
    await recorder.flush()
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert state.text == "„ü“ \t\r\n'; -- 🦠   end"
    (event,) = await Blackboard(redis).events("q_1")
    assert event.query is not None
    assert event.query.text == "„ü“ \t\r\n'; -- 🦠 \x00 end"


@pytest.mark.parametrize("status", ["answered", "abstained", "failed", "cancelled"])
async def test_how_a_query_ended_is_its_state(status: str, redis: Redis, redis_url: str, open_recorder: OpenRecorder) -> None:
    recorder = open_recorder(redis_url)
    recorder.append(Event("q_1", 0, 1.0, "query.received", query=Query("?", id="q_1")))
    recorder.append(Event("q_1", 1, 2.0, "query.finished", answer=Answer("q_1", "?", status)))  # type: ignore[arg-type]
    await recorder.flush()
    state = await Blackboard(redis).query("q_1")
    assert state is not None
    assert state.state == status


def finished(outcome: str) -> Event:
    return Event("q", 0, 0.0, "layer.finished", layer="x", result=LayerResult("x", outcome))  # type: ignore[arg-type]


def ended(status: str) -> Event:
    return Event("q", 0, 0.0, "query.finished", answer=Answer("q", "?", status))  # type: ignore[arg-type]


LEVELS = ["debug", "info", "warning", "error"]


@pytest.mark.parametrize(
    ("event", "up_to"),
    [
        (Event("q", 0, 0.0, "layer.delta", layer="x", text="a"), "debug"),
        (Event("q", 0, 0.0, "query.received", query=Query("?")), "info"),
        (Event("q", 0, 0.0, "layer.started", layer="x"), "info"),
        (finished("answered"), "info"),
        (finished("abstained"), "info"),
        (finished("timeout"), "error"),
        (finished("failed"), "error"),
        (ended("answered"), "info"),
        (ended("abstained"), "warning"),
        (ended("cancelled"), "warning"),
        (ended("failed"), "error"),
    ],
)
def test_the_level_decides_what_the_feed_keeps(event: Event, up_to: str) -> None:
    assert [level for level in LEVELS if passes(event, level)] == LEVELS[: LEVELS.index(up_to) + 1]


def test_nothing_to_record_is_nothing_to_do() -> None:
    assert operations([], level="debug") == b""


async def test_actors_are_those_whose_heart_beats(redis: Redis, redis_url: str, prefix: str) -> None:
    with connect_sync(redis_url) as client:
        heartbeat(client, "kobold", {"state": "ready", "reason": "„ü“"})
        heartbeat(client, "front_door:1", {"state": "ready"})
    assert await Blackboard(redis).actors() == {
        "kobold": {"state": "ready", "reason": "„ü“"},
        "front_door:1": {"state": "ready"},
    }
    assert 0 < await redis.ttl(actor_key("kobold", prefix)) <= 3


async def test_a_heartbeat_replaces_the_one_before(redis: Redis, redis_url: str) -> None:
    with connect_sync(redis_url) as client:
        heartbeat(client, "kobold", {"state": "loading", "model": "m"})
        heartbeat(client, "kobold", {"state": "ready"})
    assert await Blackboard(redis).actors() == {"kobold": {"state": "ready"}}


async def test_without_any_actor_there_is_none(redis: Redis) -> None:
    assert await Blackboard(redis).actors() == {}


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(Blackboard.ping, id="ping"),
        pytest.param(lambda board: board.query("q"), id="query"),
        pytest.param(lambda board: board.events("q"), id="events"),
        pytest.param(
            Blackboard.actors,
            id="actors",
        ),
    ],
)
async def test_a_redis_that_is_away_is_a_store_error(read) -> None:
    client = connect("unix:///tmp/kitbash-nothing-here.sock")
    with pytest.raises(StoreError, match="Redis does not answer"):
        await read(Blackboard(client))
    await client.aclose()
