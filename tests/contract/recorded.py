"""Events to record, and what of them is in Redis."""

from __future__ import annotations

from redis.asyncio import Redis

from kitbash_ray.blackboard import events_key, feed_key, prefix_of
from kitbash_ray.recorder import Recorder
from kitbash_ray.types import Event, decode


async def in_feed(redis: Redis) -> list[Event]:
    return [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(feed_key(prefix_of(redis)))]


async def in_query(redis: Redis, query_id: str = "q_1") -> list[Event]:
    return [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(events_key(query_id, prefix_of(redis)))]


def numbered(count: int, query_id: str = "q_1") -> list[Event]:
    return [Event(query_id, seq, float(seq), "layer.delta", layer="kobold", text=f"number {seq}") for seq in range(count)]


async def record(recorder: Recorder, events: list[Event]) -> None:
    for event in events:
        recorder.append(event)
    await recorder.flush()
