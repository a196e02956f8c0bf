"""The address of a Redis, as REDIS_URL gives it.

    redis://[user:password@]host[:port][/db]                         one server
    rediss://[user:password@]host[:port][/db]                        the same with TLS
    unix://[user:password@]/path/of/the/socket[?db=0]                the same on this machine
    redis+sentinel://[user:password@]host[:port],.../service[/db]    the master that these Sentinels name
    redis+cluster://[user:password@]host[:port],...                  a cluster, found through any of these nodes

Sentinels that want a password themselves get it as `?sentinel_password=...`, with a user of
theirs as `&sentinel_username=...`. Not here: connecting (redis_client.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

REDIS_PORT, SENTINEL_PORT = 6379, 26379
SINGLE = ("redis", "rediss", "unix")
SENTINEL, CLUSTER = "redis+sentinel", "redis+cluster"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL taken apart. `hosts` are Sentinels or nodes of a cluster; one server is left to redis-py, as `text`."""

    scheme: str
    text: str
    hosts: tuple[tuple[str, int], ...] = ()
    username: str | None = None
    password: str | None = None
    service: str = ""
    db: int = 0
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @property
    def shown(self) -> str:
        """The URL without names and passwords."""
        url = urlsplit(self.text)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def parse(text: str) -> RedisUrl:
    """Take a URL apart. Raises ValueError with a part of a sentence that names no password."""
    url = urlsplit(text)
    if url.scheme in SINGLE:
        _check_single(url)
        return RedisUrl(url.scheme, text)
    if url.scheme not in (SENTINEL, CLUSTER):
        raise ValueError(f"it begins with one of {', '.join(f'{known}://' for known in (*SINGLE, SENTINEL, CLUSTER))}")
    login, _, places = url.netloc.rpartition("@")
    username, _, password = login.partition(":")
    port = SENTINEL_PORT if url.scheme == SENTINEL else REDIS_PORT
    hosts = tuple(_host(place, port) for place in places.split(","))
    known = RedisUrl(url.scheme, text, hosts, unquote(username) or None, unquote(password) or None)
    if url.scheme == CLUSTER:
        if url.path.strip("/") or url.query:
            raise ValueError("a cluster has one database and no options: redis+cluster://host:port,host:port")
        return known
    service, _, db = url.path.strip("/").partition("/")
    if not service:
        raise ValueError("the service is missing: redis+sentinel://host:port,host:port/SERVICE")
    login_there = _sentinel_login(url.query)
    return replace(
        known,
        service=service,
        db=_db(db),
        sentinel_username=login_there.get("sentinel_username"),
        sentinel_password=login_there.get("sentinel_password"),
    )


def _check_single(url: SplitResult) -> None:
    if url.scheme == "unix":
        if not url.path:
            raise ValueError("the path of the socket is missing: unix:///path/of/the/socket")
        return
    if place := url.netloc.rpartition("@")[2]:
        _host(place, REDIS_PORT)
    _db(url.path.strip("/"))


def _host(place: str, port: int) -> tuple[str, int]:
    found = urlsplit(f"//{place}")
    try:
        number = found.port
    except ValueError:
        raise ValueError(f"{place!r} has no port between 0 and 65535") from None
    if not found.hostname:
        raise ValueError(f"{place!r} names no host")
    return found.hostname, port if number is None else number


def _db(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError(f"{text!r} is no number of a database")
    return int(text or 0)


def _sentinel_login(query: str) -> dict[str, str]:
    given = parse_qs(query, keep_blank_values=True)
    if unknown := given.keys() - {"sentinel_username", "sentinel_password"}:
        raise ValueError(f"{sorted(unknown)[0]!r} is no option; sentinel_username and sentinel_password are")
    return {name: values[-1] for name, values in given.items()}
