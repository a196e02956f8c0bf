"""Processes that die or stand still while people ask: answers go on, and stay right."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import psutil
import pytest

from kitbash_ray import Kitbash
from kitbash_ray.errors import KitbashError
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.types import Answer
from tests.asking import Asked

from .harness import ATP, SLACK_S, UNKNOWN, Cluster, asking, eventually, fact_text, listening, naming, processes, stopped
from .redis_trouble import all_back, without_redis

#: Within this many seconds Ray has a killed actor back.
BACK_S = 10.0
ACTORS = ("grain", "bitnet", "cartridge", "kobold")


def timeouts_s(cluster: Cluster) -> dict[str, float]:
    settings = cluster.settings
    return {
        "grain": settings.grain_timeout / 1000,
        "bitnet": settings.bitnet_timeout / 1000,
        "cartridge": settings.cartridge_timeout / 1000,
        "kobold": settings.kobold_timeout / 1000,
    }


@pytest.fixture(autouse=True)
def _all_back(cluster: Cluster) -> Iterator[None]:
    """Whatever a test has done, the next one begins with four living layers and a Redis."""
    yield
    all_back(cluster)


@pytest.mark.parametrize("layer", ACTORS)
def test_a_killed_actor_costs_no_right_answer_and_comes_back(cluster: Cluster, client: Kitbash, layer: str) -> None:
    before = cluster.pid(layer)
    with asking(cluster, "What is ATP?") as known, asking(cluster, UNKNOWN) as unknown:
        eventually(lambda: known.answers and unknown.answers, 20, "both are being answered")
        os.kill(before, signal.SIGKILL)
        killed = time.monotonic()
        after = eventually(lambda: _new_pid(cluster, layer, before), BACK_S + SLACK_S, f"{layer} is back")
        took = time.monotonic() - killed
        seen = len(unknown.answers)
        eventually(lambda: any(_outcomes(a)[layer] == "answered" for a in unknown.answers[seen + 1 :]), 20, "it answers")
    assert after != before
    assert took < BACK_S + SLACK_S, f"{layer} came back after {took:.1f} s"  # beside two who ask without a pause
    assert known.errors == unknown.errors == []
    assert {answer.answer for answer in known.answers} == {fact_text(ATP)}
    _assert_no_slow_layer(cluster, known, unknown)


def _outcomes(answer: Answer) -> dict[str, str]:
    return {step.layer: step.outcome for step in answer.path}


def _new_pid(cluster: Cluster, layer: str, before: int) -> int | None:
    beat = cluster.layers()[layer]
    return int(beat["pid"]) if beat["state"] == "ready" and int(beat["pid"]) != before else None


def _assert_no_slow_layer(cluster: Cluster, *all_asked: Asked[Answer]) -> None:
    limits = timeouts_s(cluster)
    for asked in all_asked:
        for took, answer in zip(asked.seconds, asked.answers, strict=True):
            for step in answer.path:
                assert step.latency_ms / 1000 < limits[step.layer] + SLACK_S, step
            assert took < sum(limits[step.layer] for step in answer.path) + SLACK_S, answer.path


def test_a_question_that_an_actor_dies_under_goes_on_to_the_next_layer(cluster: Cluster, client: Kitbash) -> None:
    pid = cluster.pid("cartridge")
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    answer = client.ask(UNKNOWN)
    assert _outcomes(answer)["cartridge"] in ("failed", "timeout")
    assert (answer.status, answer.layer) == ("answered", "kobold")
    eventually(lambda: _new_pid(cluster, "cartridge", pid), BACK_S + SLACK_S, "the actor is back")


def test_an_engine_that_is_killed_while_it_writes_ends_the_stream_with_the_reason(cluster: Cluster) -> None:
    pid = cluster.pid("kobold")
    chat = {"model": "kitbash/kobold", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3000, "stream": True}
    with cluster.http() as http, http.stream("POST", "/v1/chat/completions", json=chat) as reply:
        lines = reply.iter_lines()
        next(line for line in lines if '"content": "' in line and '"content": ""' not in line)
        os.kill(pid, signal.SIGKILL)
        said = [line for line in lines if line]
    error = json.loads(said[-2].removeprefix("data: "))["error"]
    assert "the kobold actor is gone" in error["message"]
    assert said[-1] == "data: [DONE]"
    eventually(lambda: _new_pid(cluster, "kobold", pid), BACK_S + SLACK_S, "the actor is back")


@pytest.mark.parametrize(("layer", "answers"), [("bitnet", "kobold"), ("cartridge", "kobold"), ("kobold", None)])
def test_an_actor_that_stands_still_costs_its_timeout_and_no_more(
    cluster: Cluster, client: Kitbash, layer: str, answers: str | None
) -> None:
    limit = timeouts_s(cluster)[layer]
    with stopped(cluster.pid(layer)):
        answer = client.ask(UNKNOWN)
        assert client.ask("What is ATP?").answer == fact_text(ATP)
    step = next(step for step in answer.path if step.layer == layer)
    assert step.outcome in ("timeout", "failed")  # failed: its health was missed before its time was over
    assert 1 < step.latency_ms / 1000 < limit + SLACK_S
    assert answer.layer == answers
    assert layer in answer.degraded
    eventually(lambda: client.ask(UNKNOWN).layer == "kobold", 20, "the layer answers again")


def test_a_layer_that_stands_still_costs_one_question_its_timeout_and_the_next_ones_nothing(
    cluster: Cluster, client: Kitbash
) -> None:
    with stopped(cluster.pid("cartridge")):
        client.ask(UNKNOWN)
        took = [next(step.latency_ms for step in client.ask(UNKNOWN).path if step.layer == "cartridge") for _ in range(5)]
        assert cluster.layers()["cartridge"]["breaker"] != "closed"
    assert sum(limit >= 1000 for limit in took) <= 2, took  # a trial, or two on a slow machine
    answer = eventually(lambda: (said := client.ask(UNKNOWN)).degraded == () and said, 10, "the layer is used again")
    assert {step.layer: step.outcome for step in answer.path}["cartridge"] == "answered"
    assert cluster.layers()["cartridge"]["breaker"] == "closed"


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_without_redis_answers_go_on_unrecorded_and_are_recorded_later(cluster: Cluster, client: Kitbash, how: str) -> None:
    with without_redis(cluster, how):
        began = time.monotonic()
        lost = client.ask(UNKNOWN)
        assert time.monotonic() - began < sum(timeouts_s(cluster).values()) + SLACK_S
        assert (lost.status, lost.recorded) == ("answered", False)
        for _ in range(5):
            answer = client.ask("What is ATP?")
            assert (answer.answer, answer.recorded) == (fact_text(ATP), False)
        assert client.ready()["status"] == "degraded"
    eventually(lambda: client.ask("What is ATP?").recorded, 10, "answers are recorded again")
    for missed in (lost, answer):
        events = eventually(lambda missed=missed: client.events(missed.query_id), 5, "its events were written after all")
        assert events[-1].answer == missed
        assert {event.seq for event in events} == set(range(len({event.seq for event in events})))
        assert client.query(missed.query_id)["state"] == "answered"
    assert client.ready() == {"status": "ok"}


def test_an_event_is_written_once_even_if_redis_stood_still(cluster: Cluster, client: Kitbash) -> None:
    with without_redis(cluster, "stopped"):
        lost = client.ask(UNKNOWN)
    eventually(lambda: client.ask("What is ATP?").recorded, 10, "answers are recorded again")
    events = eventually(lambda: client.events(lost.query_id)[-1].answer and client.events(lost.query_id), 5, "it was written")
    assert [event.seq for event in events] == list(range(len(events)))


def test_without_redis_the_blackboard_says_503_in_a_sentence(cluster: Cluster, http: httpx.Client) -> None:
    with without_redis(cluster, "killed"):
        for path in ("/v1/queries/q_0", "/v1/queries/q_0/events"):
            reply = http.get(path)
            assert reply.status_code == 503
            assert reply.headers["retry-after"]
            assert "Redis does not answer" in reply.json()["error"]["message"]


def test_without_redis_the_layers_are_a_503_in_a_sentence(cluster: Cluster, http: httpx.Client) -> None:
    with without_redis(cluster, "killed"):
        reply = http.get("/v1/layers")
    assert reply.status_code in (200, 503)


def test_without_redis_the_status_says_that_redis_is_away(cluster: Cluster) -> None:
    with without_redis(cluster, "killed"):
        done = cluster.command("status")
    assert "Redis" in done.stdout + done.stderr


def test_without_redis_the_feed_ends_with_a_sentence(cluster: Cluster) -> None:
    with without_redis(cluster, "killed"):
        done = cluster.command("feed")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("kitbash: Redis")


def test_up_starts_a_redis_that_has_died_again(cluster: Cluster) -> None:
    with without_redis(cluster, "killed"):
        done = cluster.command("up")
        back = bool(naming(str(RedisServer(cluster.settings.state_dir).socket)))
    assert done.returncode == 0, done.stderr
    assert back


def replicas(cluster: Cluster) -> list[psutil.Process]:
    """The front-door replicas, which hold the orchestrators."""
    found = []
    for process in processes(cluster.found.id):
        with suppress(psutil.Error):
            found += [process] if "ServeReplica" in process.name() else []
    return found


def test_a_killed_front_door_comes_back_with_the_same_answers(cluster: Cluster, client: Kitbash) -> None:
    answer = _answer_of_new_replicas(cluster)
    assert eventually(lambda: client.events(answer.query_id), 5, "it is recorded")


def _answer_of_new_replicas(cluster: Cluster) -> Answer:
    """Kill every replica; what those that come after them answer."""
    before = replicas(cluster)
    for replica in before:
        replica.kill()
    answer = eventually(lambda: _asked_again(cluster), 60, "the front door answers again")
    assert answer.answer == fact_text(ATP)
    assert {replica.pid for replica in replicas(cluster)}.isdisjoint({replica.pid for replica in before})
    return answer


def _asked_again(cluster: Cluster) -> Answer | None:
    with Kitbash(settings=cluster.settings) as client, suppress(KitbashError):
        return client.ask("What is ATP?")
    return None


def test_a_killed_haproxy_has_a_successor_which_knows_new_replicas(cluster: Cluster, client: Kitbash) -> None:
    (door,) = eventually(lambda: settled(haproxies(cluster)), 10, "one that was not started a moment ago listens")
    for _ in range(2):  # the successor has one, too
        door.kill()
        # Mostly at once; now and then it is Serve that starts the next one, which takes some seconds.
        eventually(lambda: _asked_again(cluster), 15, "the front door answers again")
        (other,) = eventually(lambda: settled(haproxies(cluster)), 10, "the successor listens")
        assert other.pid != door.pid
        door = other
    _answer_of_new_replicas(cluster)


def settled(found: list[psutil.Process]) -> list[psutil.Process]:
    """The same if it is one process that has run for more than a second."""
    return found if len(found) == 1 and time.time() - found[0].create_time() > 1 else []


def haproxies(cluster: Cluster) -> list[psutil.Process]:
    """Those that listen, without one that works off its last connections."""
    port = cluster.settings.kitbash_port
    return [process for process in processes(cluster.found.id) if process.name() == "haproxy" and port in listening([process])]


def test_what_a_killed_front_door_had_spooled_is_written_by_the_next(cluster: Cluster, client: Kitbash) -> None:
    with without_redis(cluster, "killed"):
        lost = client.ask(UNKNOWN)
        assert not lost.recorded
        for replica in replicas(cluster):
            replica.kill()
            replica.wait(10)
    eventually(lambda: _asked_again(cluster), 60, "the front door answers again")
    assert eventually(lambda: _events(client, lost.query_id), 10, "the spooled events are written")


def _events(client: Kitbash, query_id: str) -> list[object]:
    with suppress(KitbashError):
        return list(client.events(query_id))
    return []


def test_no_actor_was_restarted_without_a_reason(cluster: Cluster) -> None:
    pids = {layer: cluster.pid(layer) for layer in ACTORS}
    with asking(cluster, UNKNOWN) as asked:
        eventually(lambda: len(asked.answers) > 5, 30, "questions are answered")
    assert {layer: cluster.pid(layer) for layer in ACTORS} == pids
