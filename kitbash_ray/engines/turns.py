"""One at a time, in the order of arrival, and only so many waiting. For engines with one context."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager

from kitbash_ray.errors import LayerBusy


class Turns:
    """A queue for one model. Whoever waits may belong to any event loop."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self._taken = False

    @asynccontextmanager
    async def taken(self) -> AsyncGenerator[None, None]:
        """The model for oneself. Raises LayerBusy when too many wait already."""
        if ticket := self._enter():
            try:
                await asyncio.wrap_future(ticket)
            except asyncio.CancelledError:
                self._leave(ticket)
                raise
        try:
            yield
        finally:
            self._next()

    def _enter(self) -> Future[None] | None:
        """None if the model is free now, else what is done when it is."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return None
            if len(self._waiting) >= self._most_waiting:
                raise LayerBusy(f"{len(self._waiting)} questions wait for this model already; ask again in a while")
            ticket: Future[None] = Future()
            self._waiting.append(ticket)
            return ticket

    def _leave(self, ticket: Future[None]) -> None:
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return
        self._next()  # its turn had come while it was cancelled

    def _next(self) -> None:
        with self._lock:
            while self._waiting:
                ticket = self._waiting.popleft()
                if ticket.set_running_or_notify_cancel():
                    ticket.set_result(None)
                    return
            self._taken = False
