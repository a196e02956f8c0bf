"""Queries to answer later: a Redis stream whose workers hold what they work on for a term.

A worker claims a query, renews its hold while it works, and settles it at the end. Whoever dies
lets the term run out, and the next worker claims the query anew. Each claim raises the query's
`attempt`, and record.lua refuses the events of any other, so a query ends once however many have
worked on it. Not here: the work itself (actors/queue_worker.py), HTTP (actors/queue_routes.py).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from msgspec import MsgspecError, Struct
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kitbash_ray.blackboard import dead_letters_key, idempotency_key, prefix_of, query_key, queue_key
from kitbash_ray.errors import StoreError
from kitbash_ray.redis_client import FAULTS, trouble_of
from kitbash_ray.types import DeadLetter, Job, Query, decode, encode

log = logging.getLogger(__name__)

GROUP = "front_doors"
SCRIPT = Path(__file__).with_name("queue.lua")
#: Seconds that a claim holds without being renewed: so long a query of a dead worker waits.
LEASE_S = 10.0
#: Claims after which a query that has not ended is given up.
MAX_ATTEMPTS = 3
#: Dead letters that are kept; beyond them a query that is given up just fails.
MAX_DEAD = 1000
#: Milliseconds that a claim waits for a query; less than the two seconds after which a call to Redis fails.
BLOCK_MS = 1000
#: Milliseconds after which a consumer that holds nothing and asks for nothing counts as gone.
FORGET_MS = 60_000

T = TypeVar("T")


class Lease(Struct, frozen=True):
    """A job in the hands of one worker. `claims` counts the claims since it was queued, `ended` says that its query has an end."""

    job: Job
    entry: str
    consumer: str
    attempt: int
    claims: int
    ended: bool

    @property
    def query(self) -> Query:
        """The query as this attempt asks it: the time it may take begins now, not when it was queued."""
        query = self.job.query
        waited = time.time() - query.asked_at
        limit = None if query.deadline_s is None else query.deadline_s + waited
        return replace(query, attempt=self.attempt, deadline_s=limit)


class Submitted(Struct, frozen=True):
    """What became of a query that somebody wants answered later; "reused": its key belongs to another body."""

    outcome: Literal["accepted", "reused", "full"]
    query_id: str


class Counts(Struct, frozen=True):
    """Queries that wait, that are worked on, and that were given up."""

    waiting: int
    running: int
    dead: int


class Queue:
    """The queue in Redis. Use a client of its own: a waiting claim holds a connection. Every method raises StoreError."""

    def __init__(self, redis: Redis, *, length: int, ttl_s: int, lease_s: float = LEASE_S) -> None:
        """At most `length` queries wait; what is left of one lives `ttl_s` seconds once it is settled."""
        self._redis = redis
        self._prefix = prefix_of(redis)
        self._queue, self._dead = queue_key(self._prefix), dead_letters_key(self._prefix)
        self._script = redis.register_script(SCRIPT.read_text())
        self._length, self._ttl = length, ttl_s
        self._lease_ms = int(lease_s * 1000)
        #: Seconds after which a lease is to be renewed, so that two renewals may fail.
        self.renew_s = lease_s / 3

    async def submit(self, job: Job, body: str = "") -> Submitted:
        """Take `job` in. With an idempotency key the same `body` gets the id that it got before."""
        query, keys = job.query, [self._queue, self._query(job.query.id)]
        if job.idempotency:
            keys.append(idempotency_key(job.idempotency, self._prefix))
        told = await self._run("submit", keys, self._length, query.id, encode(job), _text(query), repr(query.asked_at), body)
        return Submitted(told[0].decode(), told[1].decode())

    async def claim(self, consumer: str) -> Lease | None:
        """A query to work on, one whose worker is gone before a new one; None after about a second without any."""
        try:
            entry = await self._call(self._stale(consumer)) or await self._call(self._new(consumer))
        except _NoGroup:
            await self._call(self._create())
            return None
        return await self._begin(consumer, *entry) if entry else None

    async def renew(self, lease: Lease) -> bool:
        """Hold on to it for another term; False if it is lost."""
        keys = [self._queue, self._query(lease.job.query.id)]
        return bool(await self._run("renew", keys, lease.consumer, lease.entry, lease.attempt))

    async def settle(self, lease: Lease, *, callback: str | None = None, failed: str | None = None) -> bool:
        """Take an ended query out of the queue; with `failed`, the reason, among the dead letters. False if it is lost."""
        query_id = lease.job.query.id
        keys = [self._queue, self._query(query_id), self._dead]
        if lease.job.idempotency:
            keys.append(idempotency_key(lease.job.idempotency, self._prefix))
        letter = b""
        if failed is not None:
            letter = encode(DeadLetter(query_id, failed, lease.claims, time.time(), lease.job, lease.attempt))
        told = await self._run(
            "settle", keys, lease.consumer, lease.entry, self._ttl, query_id, callback or "", letter, MAX_DEAD
        )
        return bool(told)

    async def counts(self) -> Counts:
        return Counts(*await self._run("count", [self._queue, self._dead]))

    async def dead_letters(self) -> list[DeadLetter]:
        """All of them, the oldest first."""
        found = await self._call(cast(Awaitable[list[bytes]], self._redis.hvals(self._dead)))
        return sorted((decode(DeadLetter, letter) for letter in found), key=lambda letter: letter.at)

    async def requeue(self, query_id: str) -> bool:
        """Give a dead query its attempts anew, under the same id; False if it is not there (any more)."""
        found = await self._call(cast(Awaitable[bytes | None], self._redis.hget(self._dead, query_id)))
        if found is None:
            return False
        letter = decode(DeadLetter, found)
        query = replace(letter.job.query, asked_at=time.time())
        job = replace(letter.job, query=query)
        keys = [self._queue, self._query(query_id), self._dead]
        return bool(
            await self._run(
                "requeue", keys, query_id, found, encode(job), _text(query), repr(query.asked_at), letter.last_attempt + 1
            )
        )

    async def drop(self, query_id: str) -> bool:
        """Forget a dead letter; False if it is not there (any more)."""
        return bool(await self._call(self._redis.hdel(self._dead, query_id)))

    async def forget_consumers(self) -> None:
        """Take workers off the group's list whose processes are gone."""
        await self._run("forget", [self._queue], FORGET_MS)

    def _query(self, query_id: str) -> str:
        return query_key(query_id, self._prefix)

    async def _stale(self, consumer: str) -> tuple[str, bytes] | None:
        """Claim an entry whose worker has let its term run out."""
        found = await self._redis.xpending_range(self._queue, GROUP, "-", "+", 1, idle=self._lease_ms)
        if not found:
            return None
        # Of several that have seen it one gets it: for the others it is not idle any more.
        taken = await self._redis.xclaim(self._queue, GROUP, consumer, self._lease_ms, [found[0]["message_id"]])
        return _first(taken)

    async def _new(self, consumer: str) -> tuple[str, bytes] | None:
        try:
            found: Any = await self._redis.xreadgroup(GROUP, consumer, {self._queue: ">"}, count=1, block=BLOCK_MS)
        except RedisTimeoutError:
            return None
        return _first(found[0][1]) if found else None

    async def _begin(self, consumer: str, entry: str, data: bytes) -> Lease | None:
        try:
            job = decode(Job, data)
        except MsgspecError as error:  # written by another version; it would come back for ever
            log.error("an entry of the queue cannot be read (%s) and is left out: %r", error, data[:200])
            await self._call(self._redis.xack(self._queue, GROUP, entry))
            await self._call(self._redis.xdel(self._queue, entry))
            return None
        told = await self._run("begin", [self._queue, self._query(job.query.id)], consumer, entry)
        if told is None:  # another one has claimed it meanwhile
            return None
        attempt, claims, ended = told
        return Lease(job, entry, consumer, attempt, claims, bool(ended))

    async def _create(self) -> None:
        try:
            await self._redis.xgroup_create(self._queue, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _run(self, operation: str, keys: list[str], *arguments: Any) -> Any:
        return await self._call(self._script(keys=keys, args=[operation, GROUP, *arguments]))

    async def _call(self, awaitable: Awaitable[T]) -> T:
        try:
            return await awaitable
        except FAULTS as error:
            missing = isinstance(error, ResponseError) and str(error).startswith("NOGROUP")
            raise (_NoGroup if missing else StoreError)(str(trouble_of(error))) from error


class _NoGroup(StoreError):
    """Nothing was queued yet, or Redis lost what it had."""


def digest(caller: str, key: str) -> str:
    """An idempotency key as it is kept: that of one caller says nothing to another."""
    return hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()


def _text(query: Query) -> str:
    return query.text.replace("\0", " ")


def _first(entries: Any) -> tuple[str, bytes] | None:
    for entry, fields in entries:
        if fields:  # an entry that somebody deleted is claimed as nothing
            return entry.decode(), fields[b"job"]
    return None
