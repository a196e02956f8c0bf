"""Writing events to Redis in batches, off the reply path, and keeping them when Redis is away.

`append` costs microseconds; a batch goes out a few milliseconds later as one atomic script.
`flush` waits until everything appended is written: call it before something that depends on
the events leaves the process. While Redis is away, events are appended to a file, and written
from there, in order, when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from filelock import FileLock, Timeout
from msgspec import MsgspecError
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from kitbash_ray.blackboard import FEED, RECORD_SCRIPT, operations
from kitbash_ray.types import Event, decode, encode

log = logging.getLogger(__name__)

#: Seconds that events wait for company, and between two attempts while Redis is away.
BATCH_S, RETRY_S = 0.010, 1.0
#: Events written at once; a script runs alone in Redis, so it must stay short.
BATCH_EVENTS = 500
#: The spool keeps what fits here; older events are more useful than none, so new ones are dropped.
SPOOL_BYTES = 256 << 20


class Recorder:
    """The one writer of events in a process. Belongs to one event loop."""

    def __init__(self, redis: Redis, *, ttl_s: int, feed_maxlen: int, level: str, spool: Path) -> None:
        self._redis = redis
        self._ttl, self._maxlen, self._level = str(ttl_s), str(feed_maxlen), level
        self._script = RECORD_SCRIPT.read_text()
        self._sha: str | None = None
        self._spool, self._lock = spool, spool.with_suffix(".lock")
        self._waiting: list[Event] = []
        self._writing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        #: Whether the last attempt to write succeeded.
        self.healthy = True

    def append(self, event: Event) -> None:
        """Take an event; it is written within a few milliseconds."""
        self._waiting.append(event)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._due)

    async def flush(self) -> None:
        """Return when everything appended so far is in Redis, or in the spool."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        async with self._writing:
            if self._spool.exists() and not self._waiting and time.monotonic() >= self._retry_at:
                await self._write([])
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_EVENTS], self._waiting[BATCH_EVENTS:]
                if not await self._write(batch):
                    self._keep(batch)

    def spooled_bytes(self) -> int:
        """The size of the events that wait for Redis."""
        try:
            return self._spool.stat().st_size
        except OSError:  # there is no spool
            return 0

    async def close(self) -> None:
        await self.flush()
        await self._redis.aclose()

    def _due(self) -> None:
        self._timer = None
        self._task = asyncio.get_running_loop().create_task(self.flush())

    async def _write(self, batch: list[Event]) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            await self._replay()
            await self._send(batch)
        except Timeout:  # another process is writing the spool's older events: ours go behind them
            return False
        except (RedisError, OSError) as error:
            if self.healthy:
                log.warning("Redis is away (%s); events go to %s", error, self._spool)
            self.healthy = False
            self._retry_at = time.monotonic() + RETRY_S
            return False
        self.healthy = True
        return True

    async def _send(self, batch: list[Event]) -> None:
        if not batch:
            return
        arguments = (FEED, self._ttl, self._maxlen, operations(batch, level=self._level))
        try:
            if self._sha is None:
                self._sha = await self._redis.script_load(self._script)
            await self._redis.evalsha(self._sha, 1, *arguments)
        except NoScriptError:  # Redis was restarted
            self._sha = await self._redis.script_load(self._script)
            await self._redis.evalsha(self._sha, 1, *arguments)

    def _keep(self, batch: list[Event]) -> None:
        try:
            with FileLock(self._lock, timeout=1):
                if self._spool.exists() and self._spool.stat().st_size > SPOOL_BYTES:
                    log.error("%s is full; %d events are lost", self._spool, len(batch))
                    return
                with self._spool.open("ab") as file:
                    file.write(b"".join(encode(event) + b"\n" for event in batch))
        except (OSError, Timeout) as error:  # losing a record must not lose the answer
            log.error("%s cannot be written (%s); %d events are lost", self._spool, error, len(batch))
        if self._timer is None:  # look again even if nobody asks anything
            self._timer = asyncio.get_running_loop().call_later(RETRY_S * 1.1, self._due)

    async def _replay(self) -> None:
        """Write what the spool holds, in order and once, also if it was another process that put it there."""
        if not self._spool.exists():
            return
        with FileLock(self._lock, timeout=0):
            lines = self._spool.read_bytes().splitlines(keepends=True)
            written = 0
            try:
                for written in range(0, len(lines), BATCH_EVENTS):
                    await self._send([event for line in lines[written : written + BATCH_EVENTS] if (event := _read(line))])
                written = len(lines)
            finally:
                if written < len(lines):
                    self._spool.write_bytes(b"".join(lines[written:]))
                else:
                    self._spool.unlink()
            log.info("wrote %d events from the spool", len(lines))


def _read(line: bytes) -> Event | None:
    """An event of the spool; None for a line that was cut short when its process died."""
    try:
        return decode(Event, line)
    except MsgspecError:
        log.warning("a damaged line of the spool is left out")
        return None
