"""The workers of the queue inside a front-door replica: claim a query, run the cascade, deliver, settle.

Whatever happens to one of them, its query goes on: an error, a killed process or a Redis that is
away leave it to the end of its lease, and then another worker has it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import httpx

from actors.orchestrator import Orchestrator
from kitbash_ray.callback import deliver
from kitbash_ray.config import Settings
from kitbash_ray.errors import StoreError
from kitbash_ray.queue import MAX_ATTEMPTS, Lease, Queue
from kitbash_ray.redis_client import connect
from kitbash_ray.types import Answer

log = logging.getLogger(__name__)

#: Seconds between two looks at a Redis that is away, or at an end that is on its way there.
RETRY_S = 1.0
#: Looks at a Redis that answers, after which an end that was recorded must have been lost.
LOOKS = 10


def open_queue(settings: Settings) -> Queue:
    """The queue over a Redis client of its own."""
    return Queue(connect(settings.resolved_redis_url), length=settings.kitbash_queue_length, ttl_s=settings.kitbash_query_ttl)


class QueueWorker:
    """One query of the queue at a time. `name` is its own among all workers."""

    def __init__(self, name: str, orchestrator: Orchestrator, queue: Queue, http: httpx.AsyncClient) -> None:
        self._name = name
        self._orchestrator = orchestrator
        self._queue = queue
        self._http = http

    async def run(self) -> None:
        """Work for ever."""
        away = False
        while True:
            try:
                if lease := await self._queue.claim(self._name):
                    await self._hold(lease)
                away = False
            except StoreError as error:
                if not away:  # once, not every second
                    log.warning("the queue waits: %s", error)
                away = True
                await asyncio.sleep(RETRY_S)
            except Exception:  # one query's fault must not end the work on the others
                log.exception("a query of the queue is left to the next worker")
                await asyncio.sleep(RETRY_S)

    async def _hold(self, lease: Lease) -> None:
        """Work on it while the lease lasts, and no longer."""
        work = asyncio.ensure_future(self._work(lease))
        try:
            while not (await asyncio.wait((work,), timeout=self._queue.renew_s))[0]:
                if not await self._renewed(lease) and not work.done():
                    log.warning("%s is in other hands now", lease.job.query.id)
                    return
            if not work.cancelled():
                work.result()
        finally:
            while not work.done():  # again, because a call of redis-py may turn a cancellation into an error of its own
                work.cancel()
                await asyncio.wait((work,), timeout=RETRY_S)

    async def _renewed(self, lease: Lease) -> bool:
        """Whether to go on: also while Redis is away, because what another one has taken over is refused there."""
        try:
            return await self._queue.renew(lease)
        except StoreError:
            return True

    async def _work(self, lease: Lease) -> None:
        if not lease.ended:
            await self._answer(lease)
        answer = await self._end(lease)
        url = lease.job.callback_url
        outcome = await deliver(self._http, url, answer) if url else None
        reason = answer.reason or "every layer failed" if answer.status == "failed" else None
        while True:
            try:
                await self._queue.settle(lease, callback=outcome, failed=reason)
                return
            except StoreError:
                await asyncio.sleep(RETRY_S)

    async def _answer(self, lease: Lease) -> None:
        if lease.claims <= MAX_ATTEMPTS:
            await self._orchestrator.ask(lease.query)
        else:
            reason = f"given up: {MAX_ATTEMPTS} workers began it and none came to an end"
            self._orchestrator.end(lease.query, "failed", reason)

    async def _end(self, lease: Lease) -> Answer:
        """The answer that the blackboard has: it may be that of somebody who cancelled the query meanwhile."""
        for _ in range(LOOKS):
            await self._orchestrator.recorder.flush()
            if answer := await self._recorded(lease):
                return answer
            await asyncio.sleep(RETRY_S)
        raise StoreError(f"The end of {lease.job.query.id} was not recorded; it is asked anew.")

    async def _recorded(self, lease: Lease) -> Answer | None:
        while True:
            try:
                found = await self._orchestrator.blackboard.query(lease.job.query.id)
            except StoreError:
                await asyncio.sleep(RETRY_S)
            else:
                return found.answer if found else None


async def work(orchestrator: Orchestrator, settings: Settings, replica: str) -> None:
    """The workers of one replica. Returns only if there are none."""
    queue = open_queue(settings)
    with suppress(StoreError):  # those of replicas that have died; the next replica tries again
        await queue.forget_consumers()
    async with httpx.AsyncClient(trust_env=False) as http:
        workers = [
            QueueWorker(f"{replica}-{number}", orchestrator, queue, http) for number in range(settings.kitbash_queue_workers)
        ]
        await asyncio.gather(*(worker.run() for worker in workers))
