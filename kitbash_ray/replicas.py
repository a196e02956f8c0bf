"""A layer done by several members, on several devices: the least busy of those that live is asked.

A member is an actor, or workers elsewhere. Its health is asked for once a second; one that does
not tell it is away, and whoever waits for it goes on to the next member at once. One that is away is
asked more often, because somebody waits for it. Among equals a conversation
stays with one member, which has its beginning in memory. Not here: whether the layer as a whole
is worth asking (breaker.py).
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, TypeVar, cast

from msgspec import Struct

from kitbash_ray.errors import KitbashError, LayerBusy, LayerUnavailable
from kitbash_ray.types import LayerResult, Query, StreamingLayer

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_EVERY_S, CHECK_AWAY_EVERY_S = 1.0, 0.25
#: A member that takes longer is away. A machine with too much to do is late as well, so this is long;
#: a layer's own timeout ends a question earlier where it is shorter.
CHECK_S = 5.0
#: What is not there after so long never comes: the connection is lost, and a new one is tried.
CHECK_LOST_S = 30.0


class Health(Struct, frozen=True):
    """How a member is: the questions that it works on, and whether it has a model loaded."""

    load: int = 0
    loaded: bool = True


class Member(Protocol):
    """One that can do the layer's work."""

    name: str

    async def health(self) -> Health:
        """Raises LayerUnavailable when the member cannot work."""
        ...

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult: ...


#: Whoever wants to know that a member is back.
Back = Callable[[], None]


def _nothing() -> None:
    """For whoever does not."""


class Replicas:
    """The layer `name`, done by `members`."""

    def __init__(self, name: str, members: Sequence[Member]) -> None:
        self.name = name
        self._watched = [_Watched(member) for member in members]

    @property
    def members(self) -> list[Any]:
        return [one.member for one in self._watched]

    async def watch(self, back: Back = _nothing) -> None:
        """Ask for every member's health, and call `back` when one that was away is not any more. Never returns."""
        await asyncio.gather(*(one.watch(back) for one in self._watched))

    async def join(self, member: Member, back: Back = _nothing) -> None:
        """The same for another member, from now on. Never returns."""
        self._watched.append(_Watched(member))
        await self._watched[-1].watch(back)

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        tried: dict[_Watched, LayerUnavailable] = {}
        while True:
            one = self._next(query, tried)
            try:
                return await one.answer(query, so_far)
            except LayerUnavailable as error:
                tried[one] = error

    def _next(self, query: Query, tried: Mapping[_Watched, LayerUnavailable]) -> _Watched:
        """Whom to ask next. Raises LayerUnavailable when nobody is left, LayerBusy when that is the worst of it."""
        left = [one for one in self._watched if one.away is None and one not in tried]
        if not left:
            reasons = [str(tried[one]) if one in tried else one.away for one in self._watched]
            busy = any(isinstance(error, LayerBusy) for error in tried.values())
            raise (LayerBusy if busy else LayerUnavailable)("; ".join(dict.fromkeys(filter(None, reasons))))
        beginning = query.history[0].text if query.history else query.text
        return min(left, key=lambda each: each.rank(beginning))


class StreamingReplicas(Replicas):
    """The same for a layer that shows its answer while it makes it."""

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...]) -> AsyncGenerator[str | LayerResult, None]:
        tried: dict[_Watched, LayerUnavailable] = {}
        while True:
            one, shown = self._next(query, tried), False
            try:
                async with aclosing(one.items(query, so_far)) as items:
                    async for item in items:
                        shown = True
                        yield item
                return
            except LayerUnavailable as error:
                if shown:  # a second beginning would be shown behind the first
                    raise
                tried[one] = error


class _Watched:
    """A member and what is known of its health."""

    def __init__(self, member: Member) -> None:
        self.member = member
        #: Why it is not asked, None while it lives.
        self.away: str | None = None
        self._gone: asyncio.Future[None] = asyncio.Future()
        self._health = Health()
        self._load = 0
        self._strikes = 0

    def rank(self, beginning: str) -> tuple[bool, int, int, int]:
        """The lower, the sooner this member is asked about a conversation that begins so."""
        load = max(self._load, self._health.load)
        return not self._health.loaded, load, self._strikes, zlib.crc32(f"{self.member.name} {beginning}".encode())

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        """Raises LayerUnavailable as soon as the member is away."""
        with self._at_work():
            return await self._unless_away(self.member.answer(query, so_far))

    async def items(self, query: Query, so_far: tuple[LayerResult, ...]) -> AsyncGenerator[str | LayerResult, None]:
        """The same, piece by piece where the member shows its answer so."""
        if not isinstance(self.member, StreamingLayer):
            yield await self.answer(query, so_far)
            return
        with self._at_work():
            async with aclosing(cast(AsyncGenerator[str | LayerResult, None], self.member.stream(query, so_far))) as made:
                while (item := await self._unless_away(anext(made, None))) is not None:
                    yield item

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """A strike for each question that it did not bring to an end; one that it did takes all back."""
        self._load += 1
        self._strikes += 1
        try:
            yield
            self._strikes = 0
        finally:
            self._load -= 1

    async def _unless_away(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._gone), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise LayerUnavailable(self.away or f"{self.member.name} was away")
        finally:
            await _ended(task)

    async def watch(self, back: Back) -> None:
        while True:
            check = asyncio.ensure_future(_told(self.member.health()))
            try:
                await asyncio.wait((check,), timeout=CHECK_S)
                if not check.done():
                    self._left(f"the {self.member.name} actor gives no sign of life")
                    await asyncio.wait((check,), timeout=CHECK_LOST_S)
                if check.done():
                    self._heard(check.result(), back)
            finally:
                await _ended(check)
            await asyncio.sleep(CHECK_EVERY_S if self.away is None else CHECK_AWAY_EVERY_S)

    def _heard(self, told: Health | str, back: Back) -> None:
        if isinstance(told, str):
            self._left(told)
            return
        self._health = told
        if self.away is not None:
            log.info("%s is back", self.member.name)
            self.away, self._gone, self._strikes = None, asyncio.Future(), 0
            back()

    def _left(self, reason: str) -> None:
        if self.away is None:
            log.warning("%s is away: %s", self.member.name, reason)
            self._gone.set_result(None)
        self.away = reason


async def _told(health: Coroutine[Any, Any, Health]) -> Health | str:
    """A member's health, or why it does not tell."""
    try:
        return await health
    except KitbashError as error:
        return str(error)
    except Exception as error:  # whatever it is, the others have to be watched on
        return f"{type(error).__name__}: {error}"


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel what is not done, and wait for that: a generator that still runs cannot be closed."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
