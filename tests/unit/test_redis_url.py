"""Addresses of Redis, taken apart."""

from __future__ import annotations

import pytest

from kitbash_ray.config import load_settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.redis_url import RedisUrl, parse


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "redis://h:1/2", "redis://:p%40s@h:1", "redis://ada:secret@h:1/2?health_check_interval=3", "redis:///1",
        "rediss://[::1]:6380", "unix:///run/redis.sock", "unix://:secret@/run/redis.sock?db=1",
    ],
)  # fmt: skip
def test_one_server_is_left_to_the_library(url: str) -> None:
    assert parse(url).text == url
    assert parse(url).hosts == ()


def test_sentinels_have_places_a_service_a_database_and_logins() -> None:
    found = parse("redis+sentinel://ada:p%40s@a:1,b,10.0.0.3:3/lab/2?sentinel_password=s%26t&sentinel_username=eve")
    assert found.hosts == (("a", 1), ("b", 26379), ("10.0.0.3", 3))
    assert (found.username, found.password, found.service, found.db) == ("ada", "p@s", "lab", 2)
    assert (found.sentinel_username, found.sentinel_password) == ("eve", "s&t")


def test_a_cluster_has_places_and_a_login() -> None:
    found = parse("redis+cluster://:secret@a:1,b")
    assert found == RedisUrl("redis+cluster", found.text, (("a", 1), ("b", 6379)), None, "secret")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:6379", "it begins with one of redis://"),
        ("http://h", "it begins with one of redis://"),
        ("redis://h:port", "no port between 0 and 65535"),
        ("redis://h:70000", "no port between 0 and 65535"),
        ("redis://h/first", "no number of a database"),
        ("unix://", "the path of the socket is missing"),
        ("redis+sentinel://a:1,b:2", "the service is missing"),
        ("redis+sentinel://a:1,,b:2/lab", "names no host"),
        ("redis+sentinel://a:x/lab", "no port between 0 and 65535"),
        ("redis+sentinel://a/lab/one", "no number of a database"),
        ("redis+sentinel://a/lab?password=x", "'password' is no option"),
        ("redis+cluster://a:1/2", "a cluster has one database"),
        ("redis+cluster://", "names no host"),
    ],
)
def test_what_cannot_be_meant_stops_the_start_with_one_sentence(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^Setting REDIS_URL is malformed: .*{why}") as raised:
        load_settings(redis_url=url)
    assert "\n" not in str(raised.value)


def test_a_malformed_url_does_not_show_its_password() -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(redis_url="redis://:s3cret@h:port")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ada:s3cret@h:1/2?x=y", "redis://h:1/2"),
        ("unix://:s3cret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis+sentinel://:s3cret@a:1,b:2/lab?sentinel_password=s3cret", "redis+sentinel://a:1,b:2/lab"),
    ],
)
def test_what_is_shown_has_no_password(url: str, shown: str) -> None:
    assert parse(url).shown == shown
