"""Clients of Redis, and what it means when Redis is away or refuses. Nothing else opens one.

A client fails a call within seconds and does not try again by itself: whoever calls knows better
what a second attempt means. Not here: the form of the address (redis_url.py), keys (blackboard.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis import asyncio as aio
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode as BlockingClusterNode
from redis.cluster import RedisCluster as BlockingRedisCluster
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry as BlockingRetry
from redis.sentinel import Sentinel as BlockingSentinel

from kitbash_ray.errors import StoreError
from kitbash_ray.redis_url import CLUSTER, SENTINEL, RedisUrl, parse

#: Seconds after which a call counts as failed; a Sentinel is asked before each connection, one after the other.
CALL_S, SENTINEL_S = 2.0, 0.5
#: What a client raises when Redis is away or refuses. An exception of clusters is no RedisError.
FAULTS = (RedisError, RedisClusterException, OSError, asyncio.TimeoutError)


def connect(url: str) -> aio.Redis:
    """A client for one event loop. It connects when it is first used; close it with `aclose`."""
    to = parse(url)
    options: dict[str, Any] = {**_OPTIONS, "retry": Retry(NoBackoff(), 0)}
    if to.scheme == CLUSTER:
        # A node that went away is noticed by a failed call; the one after it looks for the others.
        nodes = [ClusterNode(host, port) for host, port in to.hosts]
        cluster = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **_login(to), **options)
        return cast(aio.Redis, cluster)  # it has the same calls
    if to.scheme == SENTINEL:
        sentinel: Any = Sentinel(to.hosts, sentinel_kwargs=_to_sentinel(to, options))  # type: ignore[no-untyped-call]
        return cast(aio.Redis, sentinel.master_for(to.service, _OfSentinel, db=to.db, **_login(to), **options))
    return aio.Redis.from_url(url, **options)


def connect_sync(url: str, **options: Any) -> redis.Redis:
    """The same without an event loop; `options` go to its connections. A cluster is looked up at once."""
    to = parse(url)
    options = {**_OPTIONS, "retry": BlockingRetry(NoBackoff(), 0), **options}
    if to.scheme == CLUSTER:
        nodes = [BlockingClusterNode(host, port) for host, port in to.hosts]  # type: ignore[no-untyped-call]
        cluster = BlockingRedisCluster(startup_nodes=nodes, require_full_coverage=False, **_login(to), **options)
        return cast(redis.Redis, cluster)
    if to.scheme == SENTINEL:
        sentinel: Any = BlockingSentinel(to.hosts, sentinel_kwargs=_to_sentinel(to, options))  # type: ignore[no-untyped-call]
        return cast(redis.Redis, sentinel.master_for(to.service, _OfBlockingSentinel, db=to.db, **_login(to), **options))
    return redis.Redis.from_url(url, **options)


async def reconnect(client: aio.Redis) -> None:
    """Have the next call connect anew: to the master that Sentinels name then, where the host's name points then."""
    if not in_cluster(client):  # which looks for its nodes by itself
        await client.connection_pool.disconnect()


def in_cluster(client: Any) -> bool:
    """Whether a client talks to a cluster, where what is written together has to be in one hash slot."""
    return isinstance(client, RedisCluster | BlockingRedisCluster)


async def answer_of(call: Awaitable[Any], seconds: float = CALL_S) -> Any:
    """What Redis answers to a call. Raises StoreError when it refuses, or says nothing for `seconds`."""
    try:
        return await asyncio.wait_for(call, seconds)
    except FAULTS as error:
        raise StoreError(str(trouble_of(error))) from error


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why Redis cannot be used, and what to do about it."""

    what: str
    remedy: str
    #: Whether it says so itself, and the settings of Kitbash are wrong.
    refused_login: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}."

    @property
    def advice(self) -> str:
        """The remedy as a sentence of its own."""
        return f"{self.remedy[0].upper()}{self.remedy[1:]}."


def trouble_of(error: BaseException) -> Trouble:
    """What a fault means, in one sentence."""
    cause = error.__cause__ if isinstance(error, RedisClusterException) and error.__cause__ else error
    said = " ".join(str(cause).partition(" : <")[0].split()) or f"no reply within {CALL_S:.0f} s"
    if isinstance(cause, AuthenticationError | NoPermissionError):
        remedy = (
            "correct the password in REDIS_URL or REDIS_PASSWORD; of several devices, `ray up cluster.yaml` copies the head's"
        )
        return Trouble(f"Redis refuses the password ({said})", remedy, refused_login=True)
    if isinstance(cause, OutOfMemoryError):
        return Trouble(f"Redis is full ({said})", "raise its `maxmemory`, or lower KITBASH_QUERY_TTL and KITBASH_FEED_MAXLEN")
    if isinstance(cause, ReadOnlyError):
        return Trouble(f"Redis is a replica ({said})", "name its master in REDIS_URL, or the Sentinels that know it")
    if isinstance(cause, ResponseError) and said.startswith("MISCONF"):
        return Trouble(f"Redis cannot write to its disk ({said})", "make room there; its log says more")
    if isinstance(cause, ResponseError):
        return Trouble(f"Redis refuses ({said})", "its log says more")
    return Trouble(f"Redis does not answer ({said})", "see whether it runs, at the address that `kitbash status` names")


#: Notices of maintenance are of Redis Cloud. A client that listens for them hands out connections over TCP that
#: the other side has closed, and the first calls after a restart of Redis fail.
_OPTIONS: dict[str, Any] = {
    "socket_timeout": CALL_S,
    "socket_connect_timeout": CALL_S,
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}


def _login(to: RedisUrl) -> dict[str, Any]:
    return {"username": to.username, "password": to.password}


def _to_sentinel(to: RedisUrl, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "socket_timeout": SENTINEL_S,
        "socket_connect_timeout": SENTINEL_S,
        "retry": options["retry"],
        "username": to.sentinel_username,
        "password": to.sentinel_password,
    }


class _OfSentinel(aio.Redis):
    """A client of the master; closing it closes the connections to the Sentinels, too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()


class _OfBlockingSentinel(redis.Redis):
    """The same without an event loop."""

    def close(self) -> None:
        super().close()
        pool: Any = self.connection_pool
        pool.sentinel_manager.close()
