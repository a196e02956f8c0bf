"""A layer whose work is done outside the cluster: by `kitbash worker` on any machine, over HTTPS.

Puts the question where workers find it (work.py) and waits for the result. Not here: the
worker's side (worker.py), and who may be a worker (gate.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import aclosing

from kitbash_ray.errors import LayerUnavailable, StoreError
from kitbash_ray.types import LayerResult, Query
from kitbash_ray.work import WorkStream

log = logging.getLogger(__name__)

#: Seconds between two looks whether a worker lives, and between two attempts while Redis is away.
LOOK_S = 1.0


class EdgeLayer:
    """Asks the workers of `stream`'s layer. `run` has to run beside it, in the same event loop.

    The layer's result comes as a whole; there are no pieces of text before it.
    """

    def __init__(self, stream: WorkStream, timeout_s: float) -> None:
        """`timeout_s` is the layer's own: so long the cascade waits."""
        self.name = stream.layer
        #: Whether a worker lives; looked at once a second.
        self.ready = False
        self._stream = stream
        self._timeout_s = timeout_s
        self._asker = secrets.token_hex(8)
        self._waiting: dict[str, asyncio.Future[LayerResult | None]] = {}
        #: asyncio keeps only weak references to tasks.
        self._withdrawals: set[asyncio.Task[None]] = set()

    @property
    def load(self) -> int:
        """Questions of this replica that wait for a worker or are worked on."""
        return len(self._waiting)

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        """What a worker says. Raises LayerUnavailable at once when there is none, and when those who tried are gone."""
        if not self.ready:
            raise LayerUnavailable(f"no worker of {self.name} is connected: start `kitbash worker --layer {self.name}`")
        ask = secrets.token_hex(8)
        waiting: asyncio.Future[LayerResult | None] = asyncio.get_running_loop().create_future()
        self._waiting[ask] = waiting
        put = asyncio.ensure_future(self._put(ask, query, so_far))
        try:
            await asyncio.shield(put)  # cancelled in the middle, nobody would know what has to be withdrawn
            result = await waiting
            if result is None:
                raise LayerUnavailable(f"the worker of {self.name} is gone")
        except BaseException:  # cancelled, or nobody does it: a worker that has it may stop
            self._withdraw_later(put)
            raise
        finally:
            del self._waiting[ask]
        return result

    async def run(self) -> None:
        """Hear the results, and look who lives. Never returns."""
        await asyncio.gather(self._hear(), self._look())

    async def _put(self, ask: str, query: Query, so_far: tuple[LayerResult, ...]) -> str:
        left = self._timeout_s
        if query.deadline_s is not None:
            left = min(left, query.deadline_s - (time.time() - query.asked_at))
        try:
            work_id = await self._stream.put(self._asker, ask, query, so_far, left)
        except StoreError as error:
            raise LayerUnavailable(f"the workers of {self.name} cannot be asked: {error}") from error
        if work_id is None:
            raise LayerUnavailable(f"too many questions wait for the workers of {self.name}")
        return work_id

    def _withdraw_later(self, put: asyncio.Future[str]) -> None:
        task = asyncio.ensure_future(self._withdraw(put))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)

    async def _withdraw(self, put: asyncio.Future[str]) -> None:
        try:
            await self._stream.withdraw(await put)
        except (LayerUnavailable, StoreError) as error:  # it was never put, or its own time will end it
            log.debug("nothing withdrawn: %s", error)

    async def _hear(self) -> None:
        while True:
            try:
                async with aclosing(self._stream.results(self._asker)) as results:
                    async for ask, result in results:
                        self._tell(ask, result)
            except StoreError:
                await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        while True:
            try:
                alive = await self._stream.workers() > 0
            except StoreError:
                alive = False
            if not alive and not self.ready:  # not at the first look: a result may be on its way
                for ask in list(self._waiting):
                    self._tell(ask, None)
            self.ready = alive
            await asyncio.sleep(LOOK_S)

    def _tell(self, ask: str, result: LayerResult | None) -> None:
        waiting = self._waiting.get(ask)
        if waiting and not waiting.done():
            waiting.set_result(result)
