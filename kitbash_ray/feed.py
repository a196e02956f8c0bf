"""Reading the diagnostic feed: every event of all queries, as it happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from redis.asyncio import Redis

from kitbash_ray.blackboard import feed_key, prefix_of
from kitbash_ray.redis_client import answer_of
from kitbash_ray.types import Event, decode

#: Milliseconds that one read waits; between two reads the caller can notice that its client is gone.
BLOCK_MS = 1000
READ_EVENTS = 200


class Feed:
    """The feed in Redis. Use a client of its own: a waiting read holds a connection."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._key = feed_key(prefix_of(redis))

    async def follow(self, after: str = "$") -> AsyncGenerator[tuple[str, Event] | None, None]:
        """Events after the id `after` (`$`: from now on, `0`: from the oldest) with their ids.

        Yields None about once a second while nothing happens. Raises StoreError.
        """
        last = await self.newest() if after == "$" else after
        while True:
            found: Any = await answer_of(self._redis.xread({self._key: last}, count=READ_EVENTS, block=BLOCK_MS))
            if not found:
                yield None
            for _, entries in found or ():
                for entry_id, fields in entries:
                    last = entry_id.decode()
                    yield last, decode(Event, fields[b"event"])

    async def so_far(self, after: str = "0") -> AsyncGenerator[tuple[str, Event], None]:
        """Events after the id `after` that are there now, with their ids. Raises StoreError."""
        while True:
            first = "-" if after == "0" else f"({after}"
            entries: Any = await answer_of(self._redis.xrange(self._key, min=first, count=READ_EVENTS))
            for entry_id, fields in entries:
                after = entry_id.decode()
                yield after, decode(Event, fields[b"event"])
            if len(entries) < READ_EVENTS:
                return

    async def newest(self) -> str:
        """The id of the newest event. Reading after `$` anew would miss what came between two reads. Raises StoreError."""
        entries: Any = await answer_of(self._redis.xrevrange(self._key, count=1))
        return str(entries[0][0].decode()) if entries else "0"
