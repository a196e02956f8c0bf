"""Writing events to Redis in batches, off the reply path, and keeping them when Redis is away.

`append` costs microseconds; a batch goes out a few milliseconds later as one atomic script.
`flush` waits until everything appended is written: call it before something that depends on
the events leaves the process. Once Redis does not take a batch, events go to a file (spool.py)
and nobody waits for Redis any more; a task writes them from there, in order, when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from kitbash_ray.blackboard import RECORD_SCRIPT, feed_key, operations, prefix_of
from kitbash_ray.redis_client import FAULTS, Trouble, reconnect, trouble_of
from kitbash_ray.spool import Spool
from kitbash_ray.types import Event

log = logging.getLogger(__name__)

#: Seconds that events wait for company, and between two attempts while Redis is away.
BATCH_S, RETRY_S = 0.010, 1.0
#: Events written at once; a script runs alone in Redis, so it must stay short.
BATCH_EVENTS = 500
#: Seconds that an answer waits for a Redis that says nothing. One that works replies within
#: milliseconds; when it forks, its disk is slow or the cores have too much to do, within half a second.
PATIENCE_S = 1.0
#: After so many seconds without a reply, nobody is told any more that things are recorded.
LATE_S = 0.1
#: What was confirmed in these last seconds is written once more when Redis is back. With `appendfsync
#: everysec` it may hold back for two seconds what it has confirmed, and a replica that becomes
#: master may lack the last moments. What is there already is refused by record.lua.
RECENT_S = 3.0
LEFT_BEHIND = Trouble("Events of a process that died are being written", "this ends by itself")


class Recorder:
    """The one writer of events in a process. Belongs to the event loop that runs when it is made."""

    def __init__(self, redis: Redis, *, ttl_s: int, feed_maxlen: int, level: str, spool: Path) -> None:
        self._redis = redis
        self._prefix = prefix_of(redis)
        self._ttl, self._maxlen, self._level = str(ttl_s), str(feed_maxlen), level
        self._script = RECORD_SCRIPT.read_text()
        self._sha: str | None = None
        self._spool = Spool(spool)
        self._waiting: list[Event] = []
        #: Events that were appended, and those of them that are in Redis, in the spool or lost.
        self._appended = self._settled = 0
        self._recent: deque[tuple[float, list[Event]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._sent_at: float | None = None
        self._due_task: asyncio.Task[None] | None = None
        self._returning: asyncio.Task[None] | None = None
        #: Why events go to the spool, None when they go to Redis.
        self.trouble: Trouble | None = None
        if self._spool.others():
            self._turn_away(LEFT_BEHIND)

    @property
    def healthy(self) -> bool:
        """Whether Redis has confirmed everything, up to what was appended a moment ago."""
        return self.trouble is None and not self.late

    @property
    def late(self) -> bool:
        """Whether Redis has not replied for LATE_S; `flush` waits for what comes of it."""
        return self._sent_at is not None and time.monotonic() - self._sent_at > LATE_S

    def append(self, event: Event) -> None:
        """Take an event; it is written within a few milliseconds."""
        self._waiting.append(event)
        self._appended += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._due)

    async def flush(self) -> None:
        """Return when everything appended so far is in Redis, or in the spool: within PATIENCE_S, at once while Redis is away."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        upto = self._appended
        while self._settled < upto:
            if self.trouble:
                self._keep(self._taken(len(self._waiting)))
            else:
                if self._writing is None:
                    self._writing = asyncio.get_running_loop().create_task(self._write())
                await asyncio.wait({self._writing})

    async def caught_up(self) -> None:
        """Return once Redis has what was in the spool; it may take for ever."""
        if self._returning:
            await asyncio.wait({self._returning})

    def spooled_bytes(self) -> int:
        """The size of the events that wait for Redis."""
        return self._spool.waiting

    async def close(self) -> None:
        await self.flush()
        if self._returning:
            self._returning.cancel()
            await asyncio.wait({self._returning})
        self._spool.close()
        await self._redis.aclose()

    def _due(self) -> None:
        self._timer = None
        self._due_task = asyncio.get_running_loop().create_task(self.flush())

    def _taken(self, count: int) -> list[Event]:
        """Up to `count` events of those that wait, which do not wait any more."""
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def _write(self) -> None:
        """Write a batch; turn to the spool when Redis refuses it, or says nothing for PATIENCE_S."""
        batch = self._taken(BATCH_EVENTS)
        now = self._sent_at = time.monotonic()
        sending = asyncio.get_running_loop().create_task(self._send(batch))
        try:
            for _ in range(2):  # two halves: when this process itself was held up, Redis is not to blame
                await asyncio.wait({sending}, timeout=PATIENCE_S / 2)
            error = sending.exception() if sending.done() else TimeoutError(f"no reply within {PATIENCE_S} s")
            if isinstance(error, FAULTS):
                self._turn_away(trouble_of(error), batch, sending)
            elif error:  # an event that cannot be encoded: a fault of ours, which must not come again and again
                self._settled += len(batch)
                log.error("%d events are lost", len(batch), exc_info=error)
            else:
                self._settled += len(batch)
                self._recent.append((now, batch))
                while self._recent[0][0] < now - RECENT_S:
                    self._recent.popleft()
        finally:
            self._sent_at = self._writing = None

    async def _send(self, batch: list[Event]) -> None:
        if not batch:
            return
        arguments = (feed_key(self._prefix), self._ttl, self._maxlen, operations(batch, level=self._level, prefix=self._prefix))
        try:
            if self._sha is None:
                self._sha = await self._redis.script_load(self._script)
            await self._redis.evalsha(self._sha, 1, *arguments)
        except NoScriptError:  # Redis was restarted, or another one is the master now
            self._sha = await self._redis.script_load(self._script)
            await self._redis.evalsha(self._sha, 1, *arguments)

    def _turn_away(self, trouble: Trouble, batch: Sequence[Event] = (), sending: asyncio.Task[None] | None = None) -> None:
        """From now on events go to the spool: those that may be lost first, then `batch`, then what waits."""
        log.warning("%s Events go to %s meanwhile.", trouble, self._spool.folder)
        self.trouble = trouble
        self._returning = asyncio.get_running_loop().create_task(self._come_back(sending))
        recent = [event for _, events in self._recent for event in events]
        self._recent.clear()
        self._settled -= len(recent)
        self._keep([*recent, *batch, *self._taken(len(self._waiting))])

    def _keep(self, events: list[Event]) -> None:
        self._settled += len(events)
        try:
            if events:
                self._spool.append(events)
        except OSError as error:  # losing a record must not lose the answer
            log.error("%d events are lost, the spool cannot be written: %s", len(events), error)

    async def _come_back(self, sending: asyncio.Task[None] | None) -> None:
        """Try about once a second to write what is in the spool; when nothing is left, events go to Redis again."""
        if sending:  # nothing newer may overtake what may still arrive
            await asyncio.wait({sending})
            sending.exception()  # the spool has its events whatever became of it
        while trouble := await self._replay():
            if trouble != self.trouble:
                log.warning("%s", trouble)
            self.trouble = trouble
            await asyncio.sleep(RETRY_S)
            await reconnect(self._redis)
        self.trouble = None
        log.info("Redis takes events again; all that waited are written")

    async def _replay(self) -> Trouble | None:
        """Write what the dead left behind, then what this process has kept. Returns what prevents it."""
        try:
            for left in self._spool.left_behind():
                with closing(left):
                    await self._drain(left)
            await self._drain(self._spool)
        except Exception as error:  # also a disk that cannot be read: whatever it is, the attempts go on
            return trouble_of(error)
        return None

    async def _drain(self, spool: Spool) -> None:
        while (events := spool.first(BATCH_EVENTS)) is not None:
            await self._send(events)
            spool.drop()
