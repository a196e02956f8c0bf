"""Workers outside the cluster as one member of a layer: `kitbash worker` on any machine, over HTTPS.

Puts the question where workers find it (work.py) and waits for the result. Not here: whether a
member or an actor is asked (replicas.py), the worker's side (worker.py), who may be one (gate.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import aclosing

from kitbash_ray.errors import LayerUnavailable, StoreError
from kitbash_ray.replicas import Health
from kitbash_ray.types import LayerResult, Query
from kitbash_ray.work import WorkStream

log = logging.getLogger(__name__)

#: Seconds between two looks for the first worker, and between two attempts while Redis is away.
LOOK_S = 1.0


class EdgeMember:
    """The workers of `stream`'s layer. `hear` has to run beside it, in the same event loop.

    The result comes as a whole; there are no pieces of text before it.
    """

    def __init__(self, stream: WorkStream, timeout_s: float) -> None:
        """`timeout_s` is the layer's own: so long the cascade waits."""
        self.name = f"{stream.layer}-edge"
        self._stream = stream
        self._timeout_s = timeout_s
        self._asker = secrets.token_hex(8)
        self._waiting: dict[str, asyncio.Future[LayerResult | None]] = {}
        #: asyncio keeps only weak references to tasks.
        self._withdrawals: set[asyncio.Task[None]] = set()

    async def health(self) -> Health:
        """How busy the least busy worker is. Raises LayerUnavailable when there is none."""
        try:
            workers, work = await self._stream.count()
        except StoreError as error:
            raise LayerUnavailable(f"the workers of {self._stream.layer} cannot be asked: {error}") from error
        if not workers:
            raise LayerUnavailable(f"no worker of {self._stream.layer} is connected")
        # One more than it is: of equally busy ones an actor is nearer.
        return Health(1 + work // workers)

    async def first_worker(self) -> None:
        """Return when a worker lives."""
        while True:
            try:
                await self.health()
                return
            except LayerUnavailable:
                await asyncio.sleep(LOOK_S)

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        """What a worker says. Raises LayerUnavailable at once when there is none, and when those who tried are gone."""
        ask = secrets.token_hex(8)
        waiting: asyncio.Future[LayerResult | None] = asyncio.get_running_loop().create_future()
        self._waiting[ask] = waiting
        put = asyncio.ensure_future(self._put(ask, query, so_far))
        result = None
        try:
            await asyncio.shield(put)  # cancelled in the middle, nobody would know what has to be withdrawn
            result = await waiting
        finally:
            del self._waiting[ask]
            if result is None:  # called off, or nobody does it: a worker that has it may stop
                self._withdraw_later(put)
        if result is None:
            raise LayerUnavailable(f"the workers of {self._stream.layer} that tried it are gone")
        return result

    async def hear(self) -> None:
        """Hand the results to those who wait for them. Never returns."""
        while True:
            try:
                async with aclosing(self._stream.results(self._asker)) as results:
                    async for ask, result in results:
                        waiting = self._waiting.get(ask)
                        if waiting and not waiting.done():
                            waiting.set_result(result)
            except StoreError:
                await asyncio.sleep(LOOK_S)

    async def _put(self, ask: str, query: Query, so_far: tuple[LayerResult, ...]) -> str:
        left = self._timeout_s
        if query.deadline_s is not None:
            left = min(left, query.deadline_s - (time.time() - query.asked_at))
        try:
            return await self._stream.put(self._asker, ask, query, so_far, left)
        except StoreError as error:
            raise LayerUnavailable(f"the workers of {self._stream.layer} cannot be asked: {error}") from error

    def _withdraw_later(self, put: asyncio.Future[str]) -> None:
        task = asyncio.ensure_future(self._withdraw(put))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)

    async def _withdraw(self, put: asyncio.Future[str]) -> None:
        try:
            await self._stream.withdraw(await put)
        except (LayerUnavailable, StoreError) as error:  # it was never put, or its own time will end it
            log.debug("nothing withdrawn: %s", error)
