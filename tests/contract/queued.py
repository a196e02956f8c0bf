"""One queued query in the tests: its claim, the events of each attempt at it, and its ends."""

from __future__ import annotations

from collections.abc import Callable

from redis.asyncio import Redis

from kitbash_ray.blackboard import events_key, feed_key
from kitbash_ray.queue import Lease, Queue
from kitbash_ray.recorder import Recorder
from kitbash_ray.types import ATTEMPT_EVENTS, Answer, Event, Job, LayerResult, Query, decode

OpenRecorder = Callable[..., Recorder]
OpenQueue = Callable[..., Queue]

JOB = Job(Query("What is ATP?", id="q_1"))
#: A term so short that tests see it run out.
SHORT_S = 0.05


async def claimed(queue: Queue, consumer: str = "w-1") -> Lease:
    """What `consumer` gets, once a term that runs out has done so."""
    for _ in range(5):
        if lease := await queue.claim(consumer):
            return lease
    raise AssertionError("nothing could be claimed")


def finish(attempt: int, text: str = "yes", status: str = "answered") -> Event:
    answer = Answer("q_1", "What is ATP?", status, text)  # type: ignore[arg-type]
    return Event("q_1", attempt * ATTEMPT_EVENTS + 5, 5.0, "query.finished", answer=answer, attempt=attempt)


def life_of(attempt: int, text: str = "yes") -> list[Event]:
    """The events of one attempt, as the cascade numbers them."""
    query = Query("What is ATP?", id="q_1", asked_at=1.0, attempt=attempt)
    first = attempt * ATTEMPT_EVENTS
    return [
        Event("q_1", first, 1.0, "query.received", query=query, attempt=attempt),
        Event("q_1", first + 1, 2.0, "layer.started", layer="kobold", query=query, attempt=attempt),
        Event("q_1", first + 2, 3.0, "layer.finished", result=LayerResult("kobold", "answered", text=text), attempt=attempt),
        finish(attempt, text),
    ]


async def record(recorder: Recorder, *events: Event) -> None:
    for event in events:
        recorder.append(event)
    await recorder.flush()


async def finishes(redis: Redis) -> list[Event]:
    """The ends of q_1, after making sure that its own stream and the feed have the same ones."""
    found = []
    for stream in (events_key("q_1"), feed_key()):
        events = [decode(Event, fields[b"event"]) for _, fields in await redis.xrange(stream)]
        found.append([event for event in events if event.kind == "query.finished"])
    assert found[0] == found[1]
    return found[0]
