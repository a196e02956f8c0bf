"""What the doctor and `kitbash up` say of a Redis that does not do what it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.cluster import refuse_wrong_login
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.doctor import judge, look
from kitbash_ray.errors import StoreError
from kitbash_ray.state import Running

from .redis_servers import Server, frozen, until

RUNNING = Running("id", "http://127.0.0.1:9", "", "127.0.0.1:9", 1, None, "", "", 0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as started:
        yield started


def found(settings: Settings) -> tuple[bool, str, str]:
    here = look(settings)
    [finding] = [finding for finding in judge(here, None, RUNNING) if finding.check == "redis"]
    return finding.ok, finding.what, finding.remedy


def test_a_redis_that_takes_writes_is_fine_and_nothing_stays_in_it(server: Server) -> None:
    assert found(load_settings(redis_url=server.url)) == (True, "answers and takes writes", "")
    until(lambda: server.told("KEYS", "*") == [], "what was written is gone")


@pytest.mark.parametrize(
    ("command", "what", "remedy"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "Redis is full", "Raise its `maxmemory`"),
        (("CONFIG", "SET", "requirepass", "other"), "Redis refuses the password", "REDIS_PASSWORD"),
        (("REPLICAOF", "127.0.0.1", "1"), "Redis is a replica", "Name its master"),
    ],
)
def test_what_redis_refuses_is_named_with_its_remedy(server: Server, command: tuple[str, ...], what: str, remedy: str) -> None:
    server.told(*command)
    ok, told, advice = found(
        load_settings(redis_url=f"redis://:guessed@{server.place}" if "requirepass" in command else server.url)
    )
    assert not ok
    assert told.startswith(what)
    assert remedy in advice
    assert advice.endswith(".")


def test_a_redis_that_stands_still_does_not_answer(server: Server) -> None:
    with frozen(server.process.pid):
        ok, told, advice = found(load_settings(redis_url=server.url))
    assert (ok, told[:21]) == (False, "Redis does not answer")
    assert advice


@pytest.mark.parametrize("url", ["redis+sentinel://127.0.0.1:1,127.0.0.1:2/lab", "redis+cluster://127.0.0.1:1"])
def test_sentinels_and_nodes_that_are_not_there_are_one_sentence(url: str) -> None:
    ok, told, _ = found(load_settings(redis_url=url))
    assert (ok, told[:21]) == (False, "Redis does not answer")
    assert len(told) < 200


def test_a_start_with_a_wrong_password_is_refused_and_one_without_redis_is_told(server: Server) -> None:
    told: list[str] = []
    refuse_wrong_login(load_settings(), told.append)  # a private one is not there yet
    refuse_wrong_login(load_settings(redis_url=server.url), told.append)
    assert told == []
    server.told("CONFIG", "SET", "requirepass", "other")
    with pytest.raises(
        StoreError, match=r"^Redis refuses the password .*: correct the password in REDIS_URL or REDIS_PASSWORD"
    ):
        refuse_wrong_login(load_settings(redis_url=f"redis://:guessed@{server.place}"), told.append)
    server.kill()
    refuse_wrong_login(load_settings(redis_url=server.url), told.append)
    assert [text[:21] for text in told] == ["Redis does not answer"]
