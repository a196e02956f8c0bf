"""Answers later, while what works on them dies: each accepted query ends once."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import redis
from redis.exceptions import RedisError

from kitbash_ray import Kitbash
from kitbash_ray.blackboard import query_key
from kitbash_ray.errors import KitbashError
from kitbash_ray.queue import LEASE_S, MAX_ATTEMPTS
from kitbash_ray.types import Answer, decode

from .harness import ATP, UNKNOWN, Cluster, eventually, fact_text, stopped
from .redis_trouble import kill_redis, start_redis
from .test_kill import replicas

#: Seconds in which Serve has a killed replica back, on a machine that has other things to do.
REPLICA_S = 60.0
WORKERS = 4


@pytest.fixture(autouse=True)
def _all_back(cluster: Cluster) -> Iterator[None]:
    """Whatever a test has done, the next one begins with a Redis, ready layers and an empty queue."""
    yield
    start_redis(cluster)
    eventually(lambda: all(layer["state"] == "ready" for layer in cluster.layers().values()), 30, "all layers are ready")
    eventually(lambda: _counts(cluster)["waiting"] + _counts(cluster)["running"] == 0, 120, "the queue is empty")


def _counts(cluster: Cluster) -> dict[str, int]:
    with suppress(KitbashError), Kitbash(settings=cluster.settings) as client:
        return client.queue()
    return {"waiting": -1, "running": 0, "dead": 0}


def results(cluster: Cluster, ids: Sequence[str], seconds: float = 180.0) -> dict[str, Answer]:
    """The answers to all of them, however often the front door is away meanwhile."""
    found: dict[str, Answer] = {}

    def look() -> bool:
        with suppress(KitbashError), Kitbash(settings=cluster.settings) as client:
            for query_id in ids:
                if query_id not in found:
                    found[query_id] = client.result(query_id, wait=5)
        return len(found) == len(ids)

    eventually(look, seconds, "all are answered")
    return found


def assert_each_ended_once(client: Kitbash, ids: Sequence[str]) -> None:
    ended = Counter(event.query_id for event in client.feed("0", follow=False) if event.kind == "query.finished")
    assert {query_id: ended[query_id] for query_id in ids} == dict.fromkeys(ids, 1)
    for query_id in ids:
        kinds = [event.kind for event in client.events(query_id)]
        assert kinds.count("query.finished") == 1
        assert kinds[-1] == "query.finished"


@contextmanager
def receiving() -> Iterator[tuple[str, list[Answer], threading.Event]]:
    """The address of a real server, the answers that it was sent, and whether there is one."""
    answers: list[Answer] = []
    told = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answers.append(decode(Answer, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            told.set()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/told", answers, told
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_queued_question_is_answered_and_delivered(client: Kitbash) -> None:
    with receiving() as (url, answers, told):
        query_id = client.submit("What is ATP?", callback_url=url)
        answer = client.result(query_id, wait=30)
        assert told.wait(20)
    assert (answer.status, answer.layer, answer.answer, answer.query_id) == ("answered", "grain", fact_text(ATP), query_id)
    assert answers == [answer]
    eventually(lambda: client.query(query_id)["callback"] == "delivered", 10, "the delivery is noted")
    assert_each_ended_once(client, [query_id])


def test_many_queued_questions_are_each_answered_once(cluster: Cluster, client: Kitbash) -> None:
    ids = [client.submit("What is ATP?") for _ in range(100)]
    assert {answer.answer for answer in results(cluster, ids).values()} == {fact_text(ATP)}
    assert_each_ended_once(client, ids)


def test_a_question_that_is_sent_again_with_its_key_is_one(client: Kitbash) -> None:
    ids = {client.submit("What is ATP?", idempotency_key="again") for _ in range(3)}
    assert len(ids) == 1


def test_what_a_killed_front_door_had_accepted_is_answered_once(cluster: Cluster, client: Kitbash) -> None:
    # Given twenty accepted questions, as many of them in work as there are workers
    kobold = cluster.pid("kobold")
    with stopped(kobold):
        ids = [client.submit(UNKNOWN) for _ in range(20)]
        eventually(lambda: client.queue()["running"] == WORKERS, 20, "the workers are busy")
        for replica in replicas(cluster):
            replica.kill()
    answers = results(cluster, ids)
    assert {answer.layer for answer in answers.values()} == {"kobold"}
    assert_each_ended_once(client, ids)


def test_while_redis_is_killed_and_started_nothing_that_was_accepted_is_lost(cluster: Cluster, client: Kitbash) -> None:
    with stopped(cluster.pid("kobold")):
        ids = [client.submit(UNKNOWN) for _ in range(20)]
        eventually(lambda: client.queue()["running"] == WORKERS, 20, "the workers are busy")
        kill_redis(cluster)
    with pytest.raises(KitbashError, match="Redis"):
        client.submit("What is ATP?")
    start_redis(cluster)
    answers = results(cluster, ids)
    assert {answer.layer for answer in answers.values()} == {"kobold"}
    assert_each_ended_once(client, ids)


def test_redis_and_the_front_door_are_killed_and_nothing_is_lost(cluster: Cluster, client: Kitbash) -> None:
    with stopped(cluster.pid("kobold")):
        ids = [client.submit(UNKNOWN) for _ in range(8)]
        eventually(lambda: client.queue()["running"] == WORKERS, 20, "the workers are busy")
        kill_redis(cluster)
        for replica in replicas(cluster):
            replica.kill()
    start_redis(cluster)
    results(cluster, ids)
    assert_each_ended_once(client, ids)


def test_a_question_under_which_every_front_door_dies_becomes_a_dead_letter(cluster: Cluster, client: Kitbash) -> None:
    with redis.Redis.from_url(cluster.settings.resolved_redis_url) as board, stopped(cluster.pid("kobold")):
        query_id = client.submit(UNKNOWN)
        for attempt in range(2, MAX_ATTEMPTS + 2):
            eventually(lambda attempt=attempt: _attempt(board, query_id) == attempt, REPLICA_S + LEASE_S, f"attempt {attempt}")
            for replica in replicas(cluster):
                replica.kill()
        answer = results(cluster, [query_id])[query_id]
    assert answer.status == "failed"
    assert "given up" in str(answer.reason)
    (letter,) = eventually(client.dead_letters, 10, "it is a dead letter")
    assert (letter.query_id, letter.job.query.text) == (query_id, UNKNOWN)
    assert_each_ended_once(client, [query_id])
    # When nothing kills it any more
    assert "1 dead" in cluster.command("status").stdout
    assert query_id in cluster.command("queue", "list").stdout
    assert cluster.command("queue", "requeue", query_id).stdout == f"{query_id} is queued\n"
    assert results(cluster, [query_id])[query_id].layer == "kobold"
    assert client.dead_letters() == []


def _attempt(board: redis.Redis, query_id: str) -> int:
    with suppress(RedisError):
        return int(board.hget(query_key(query_id), "attempt") or 0)  # type: ignore[arg-type]
    return 0


def test_a_question_that_waits_is_cancelled_at_once(cluster: Cluster, client: Kitbash, http: httpx.Client) -> None:
    with stopped(cluster.pid("kobold")):
        busy = [client.submit(UNKNOWN) for _ in range(WORKERS)]
        eventually(lambda: client.queue()["running"] == WORKERS, 20, "the workers are busy")
        waits = client.submit(UNKNOWN)
        assert http.delete(f"/v1/queries/{waits}").json() == {"query_id": waits, "state": "cancelled"}
        assert client.result(waits, wait=0).status == "cancelled"
        for query_id in busy:
            client.cancel(query_id)
    assert {answer.status for answer in results(cluster, busy).values()} == {"cancelled"}
    assert_each_ended_once(client, [*busy, waits])


def test_the_command_line_queues_and_shows_the_answer(cluster: Cluster) -> None:
    queued = cluster.command("ask", "--later", "What is ATP?")
    assert queued.returncode == 0, queued.stderr
    query_id = queued.stdout.strip()
    shown = cluster.command("result", query_id, "--wait", "--json")
    assert json.loads(shown.stdout)["answer"] == fact_text(ATP)
    assert "energy currency" in cluster.command("result", query_id).stdout
    several = cluster.command("ask", "--later", "-", stdin="What is ATP?\n\nWhat is ADP?\n")
    assert len(several.stdout.split()) == 2
    counts = json.loads(cluster.command("status", "--json").stdout)["queue"]
    assert set(counts) == {"waiting", "running", "dead"}


def test_the_command_line_says_what_is_missing(cluster: Cluster) -> None:
    query_id = "q_0000000000000001"
    with redis.Redis.from_url(cluster.settings.resolved_redis_url) as board:
        board.hset(query_key(query_id), mapping={"state": "queued", "text": "x", "asked_at": "0"})
        early = cluster.command("result", query_id)
        board.delete(query_key(query_id))
    assert early.returncode == 7
    assert early.stderr.startswith(f"kitbash: The question {query_id} is still ")
    assert cluster.command("ask", "--later", "--mode", "direct", "x").returncode == 2
    assert cluster.command("queue", "requeue").returncode == 2
    assert "no dead letter" in cluster.command("queue", "drop", "q_0123456789abcdef").stderr
