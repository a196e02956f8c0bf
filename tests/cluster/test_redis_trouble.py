"""Redis in trouble under a load of questions, seen from outside."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import psutil
import pytest

from actors.haproxy import free_port
from kitbash_ray import Kitbash
from kitbash_ray.redis_client import connect_sync
from kitbash_ray.redis_server import Listen, RedisServer
from kitbash_ray.types import Answer, Event
from tests.asking import Asked

from .harness import ATP, SLACK_S, UNKNOWN, Cluster, asking, eventually, fact_text, naming
from .redis_trouble import all_back, without_redis

STOPPED_S = 5.0


@pytest.fixture(autouse=True)
def _all_back(cluster: Cluster) -> Iterator[None]:
    yield
    all_back(cluster)


def test_while_redis_stands_still_every_question_is_answered_and_all_is_recorded_in_the_end(
    cluster: Cluster, client: Kitbash
) -> None:
    settings = cluster.settings
    timeouts = (settings.grain_timeout, settings.bitnet_timeout, settings.cartridge_timeout, settings.kobold_timeout)
    with ExitStack() as stack:
        asked = [stack.enter_context(asking(cluster, question)) for question in ("What is ATP?",) * 3 + (UNKNOWN,) * 2]
        eventually(lambda: all(each.answers for each in asked), 30, "all are being answered")
        with without_redis(cluster, "stopped"):
            before = [len(each.answers) for each in asked]
            end = time.monotonic() + STOPPED_S
            eventually(lambda: time.monotonic() > end, STOPPED_S + 1, "Redis has stood still for a while")
            eventually(lambda: _all_have_more(asked, before), 60, "all are being answered without Redis")
            eventually(lambda: not asked[0].answers[-1].recorded, 5, "answers say that they are not recorded")
        eventually(lambda: asked[0].answers[-1].recorded, 10, "answers are recorded again")
    assert [error for each in asked for error in each.errors] == []
    assert {answer.answer for each in asked[:3] for answer in each.answers} == {fact_text(ATP)}
    assert max(took for each in asked for took in each.seconds) < sum(timeouts) / 1000 + SLACK_S
    _assert_all_recorded(client, asked)


def _all_have_more(asked: list[Asked[Answer]], before: list[int]) -> bool:
    return all(len(each.answers) > count + 1 for each, count in zip(asked, before, strict=True))


def _assert_all_recorded(client: Kitbash, asked: list[Asked[Answer]]) -> None:
    """Each query has all its events, in order and once, on the blackboard and in the feed."""
    fed: dict[str, list[int]] = {}
    for event in client.feed("0", follow=False):
        fed.setdefault(event.query_id, []).append(event.seq)
    for answer in chain.from_iterable(each.answers for each in asked):
        events = client.events(answer.query_id)
        assert [event.seq for event in events] == list(range(len(events))) == fed[answer.query_id]
        assert events[-1].answer == answer
        assert client.query(answer.query_id)["state"] == answer.status


@contextmanager
def full_memory(cluster: Cluster) -> Iterator[None]:
    with connect_sync(cluster.settings.resolved_redis_url) as redis:
        redis.config_set("maxmemory", 1)
        try:
            yield
        finally:
            redis.config_set("maxmemory", 0)


def test_a_full_redis_is_named_by_the_front_door_the_status_and_the_doctor(cluster: Cluster, client: Kitbash) -> None:
    with full_memory(cluster):
        lost = client.ask(UNKNOWN)
        assert (lost.status, lost.recorded) == ("answered", False)
        health = client.ready()
        assert health["status"] == "degraded"
        assert "Redis is full" in health["reason"]
        assert "Redis is full" in cluster.command("status").stdout
        told = json.loads(cluster.command("doctor", "--json").stdout)["findings"]
        [finding] = [finding for finding in told if finding["check"] == "redis"]
        assert not finding["ok"]
        assert "maxmemory" in finding["remedy"]
    eventually(lambda: client.ask("What is ATP?").recorded, 10, "answers are recorded again")
    assert client.events(lost.query_id)[-1].answer == lost
    assert client.ready() == {"status": "ok"}


def test_up_refuses_a_wrong_password_with_one_sentence_and_starts_nothing(cluster: Cluster, tmp_path: Path) -> None:
    listen = Listen("127.0.0.1", free_port(), "s3cret")
    server = RedisServer(cluster.settings.state_dir.parent / "other", listen)  # short: a socket's path has 107 bytes
    process = psutil.Process(server.start({}))
    ports = {"KITBASH_PORT": str(free_port()), "KITBASH_DASHBOARD_PORT": str(free_port())}
    try:
        given = {"REDIS_URL": f"redis://:wrong@127.0.0.1:{listen.port}", "KITBASH_STATE_DIR": str(tmp_path / "s")}
        done = cluster.command("up", **ports, **given)
    finally:
        process.terminate()
        process.wait(10)
    assert done.returncode == 5
    assert done.stderr.strip().splitlines()[-1].startswith("kitbash: Redis refuses the password")
    assert "REDIS_URL" in done.stderr
    assert "wrong@" not in done.stderr
    assert not (tmp_path / "s" / "cluster.json").exists()
    assert not naming(str(tmp_path / "s"))


def test_the_feed_goes_on_where_it_was_when_redis_is_back(cluster: Cluster, client: Kitbash) -> None:
    seen: list[Event] = []
    told: list[str] = []
    last = ""

    def follow() -> None:
        with Kitbash(settings=cluster.settings) as watching:
            for event in watching.feed("0", interrupted=told.append):
                seen.append(event)
                if event.query_id == last and event.answer:
                    return

    following = threading.Thread(target=follow, daemon=True)
    first = client.ask("What is ATP?")
    following.start()
    eventually(lambda: first.query_id in {event.query_id for event in seen}, 10, "the feed is followed")
    with without_redis(cluster, "killed"):
        last = client.ask(UNKNOWN).query_id
        eventually(lambda: told, 10, "whoever follows is told")
    following.join(30)
    assert not following.is_alive()
    assert len(told) == 1
    assert told[0].startswith("Redis does not answer")
    assert [event.seq for event in seen if event.query_id == last] == list(range(seen[-1].seq + 1))
    # Whoever was following may have seen what Redis lost when it died, and sees it again; Redis has it once.
    kept = [(event.query_id, event.seq) for event in client.feed("0", follow=False)]
    assert len({*kept}) == len(kept)
    assert {*kept} >= {(event.query_id, event.seq) for event in seen if event.query_id in (first.query_id, last)}
