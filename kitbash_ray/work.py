"""One layer's work for workers outside the cluster, in Redis: put, claimed, answered once.

A stream with a consumer group. Who claims work has it for a lease, renewed by each heartbeat;
when the lease ends, the next worker gets it, at most `MOST_TRIES` times in all. Only whoever has
the claim can answer, so an answer comes once. Work that nobody waits for any more is handed to
nobody. Not here: who waits for the answers (edge.py), HTTP (actors/work_routes.py).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from kitbash_ray.blackboard import (
    HEARTBEAT_S,
    HEARTBEATS_MISSED,
    actor_key,
    add_heartbeat,
    edge_actor,
    prefix_of,
    results_key,
    work_key,
    workers_key,
)
from kitbash_ray.errors import LayerBusy, LayerUnavailable, StoreError
from kitbash_ray.redis_client import FAULTS, trouble_of
from kitbash_ray.types import LayerResult, Query, decode, encode
from kitbash_ray.work_types import BeatIn, Work

SCRIPT = Path(__file__).with_name("work.lua")
GROUP = "workers"
#: Milliseconds without a heartbeat after which work is taken from a worker, and the worker counts as gone.
LEASE_MS = int(HEARTBEAT_S * HEARTBEATS_MISSED * 1000)
#: Workers that may have a question, one after the other. What two of them died of kills a third.
MOST_TRIES = 2
#: Questions of a layer that wait or are worked on, of all front-door replicas.
MOST_WAITING = 256
#: Seconds that Redis keeps work, longer than any layer's timeout, and a result that nobody fetches.
KEPT_S, RESULT_KEPT_S = 3600, 60
#: Milliseconds that one read waits: so often a waiting worker looks for work whose lease is over.
BLOCK_MS = 1000


class _Request(Struct, frozen=True):
    """What an entry of the stream asks."""

    query: Query
    so_far: tuple[LayerResult, ...]


class WorkStream:
    """The work of `layer`. Every method raises StoreError when Redis cannot be reached.

    Waiting holds a connection: use a client of its own.
    """

    def __init__(self, redis: Redis, layer: str) -> None:
        self.layer = layer
        self._redis = redis
        self._prefix = prefix_of(redis)
        self._key = work_key(layer, self._prefix)
        self._script = redis.register_script(SCRIPT.read_text())

    async def put(self, asker: str, ask: str, query: Query, so_far: tuple[LayerResult, ...], seconds: float) -> str:
        """Ask the workers; `asker` hears the result under the name `ask`. Returns the work's id.

        Raises LayerUnavailable when there is no worker, LayerBusy when too much waits already.
        """
        request, ms = encode(_Request(query, so_far)), int(seconds * 1000)
        put = await self._step("put", "", LEASE_MS, MOST_WAITING, KEPT_S, request, ms, ask, results_key(asker, self._prefix))
        if put == b"nobody":
            raise LayerUnavailable(f"no worker of {self.layer} is connected: start `kitbash worker --layer {self.layer}`")
        if put == b"full":
            raise LayerBusy(f"too many questions wait for the workers of {self.layer}")
        return str(put.decode())

    async def withdraw(self, work_id: str) -> None:
        """Nobody waits for this any more; its worker hears it with its next heartbeat."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xack(self._key, GROUP, work_id)
            pipe.xdel(self._key, work_id)
            await self._call(pipe.execute())

    async def claim(self, worker: str, wait_s: float, wanted: Callable[[], bool] = lambda: True) -> Work | None:
        """Work for `worker`, which has to be heard meanwhile; None when there is none within `wait_s`.

        Takes none when it is cancelled, nor once it is not `wanted` any more: before Python 3.12, a
        cancellation gets lost that comes at the same moment as a reply of Redis.
        """
        end = time.monotonic() + wait_s
        while wanted():
            taken = await self._step("claim", worker, LEASE_MS, MOST_TRIES, KEPT_S)
            if len(taken) > 1:
                asked = decode(_Request, taken[1])
                return Work(taken[0].decode(), asked.query, asked.so_far, int(taken[2]) / 1000)
            left_ms = int((end - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            await self._read_after(taken[0], min(left_ms, BLOCK_MS))
        return None

    async def beat(self, beat: BeatIn) -> tuple[str, ...]:
        """The worker lives, and what it has is its own for another lease. Returns what is not its own any more."""
        actor = edge_actor(self.layer, beat.worker)
        if beat.state == "leaving":
            await self._step("leave", beat.worker, LEASE_MS)
            await self._call(self._redis.delete(actor_key(actor, self._prefix)))
            return beat.working
        async with self._redis.pipeline(transaction=True) as pipe:
            add_heartbeat(pipe, actor, self._fields(beat), self._prefix)
            await self._call(pipe.execute())
        lost = await self._step("beat", beat.worker, LEASE_MS, KEPT_S, *beat.working)
        return tuple(work_id.decode() for work_id in lost)

    async def settle(self, worker: str, work_id: str, result: LayerResult) -> bool:
        """Hand `result` to whoever waits; False when the work is not this worker's any more."""
        return bool(await self._step("settle", worker, work_id, encode(result), RESULT_KEPT_S))

    async def count(self) -> tuple[int, int]:
        """How many workers live, and how many questions wait for them or are worked on."""
        workers, work = await self._step("count", "", LEASE_MS)
        return int(workers), int(work)

    async def results(self, asker: str) -> AsyncGenerator[tuple[str, LayerResult | None], None]:
        """What `asker` asked, each with its result, None when no worker will do it. Never ends."""
        while True:
            try:
                found: Any = await self._redis.blpop([results_key(asker, self._prefix)], timeout=BLOCK_MS / 1000)
            except RedisTimeoutError:
                continue
            except FAULTS as error:
                raise StoreError(str(trouble_of(error))) from error
            if found:
                ask, _, result = found[1].partition(b" ")
                yield ask.decode(), decode(LayerResult, result) if result else None

    def _fields(self, beat: BeatIn) -> dict[str, str]:
        return {
            "layer": self.layer,
            "worker": beat.worker,
            "node": beat.node,
            "pid": str(beat.pid),
            "state": beat.state,
            "load": str(len(beat.working)),
            "model": beat.model,
            "version": beat.version,
            "since": repr(beat.since),
            "at": repr(time.time()),
        }

    async def _read_after(self, newest: bytes, block_ms: int) -> None:
        """Return when there is something new, or the time is over. Takes nothing."""
        try:
            await self._redis.xread({self._key: newest}, count=1, block=block_ms)
        except RedisTimeoutError:
            return
        except FAULTS as error:
            raise StoreError(str(trouble_of(error))) from error

    async def _step(self, what: str, worker: str, *arguments: Any) -> Any:
        return await self._call(
            self._script(keys=[self._key, workers_key(self.layer, self._prefix)], args=[what, GROUP, worker, *arguments])
        )

    async def _call(self, awaitable: Any) -> Any:
        try:
            return await awaitable
        except FAULTS as error:
            raise StoreError(str(trouble_of(error))) from error
