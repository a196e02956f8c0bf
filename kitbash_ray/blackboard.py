"""The state of every query and actor in Redis, readable by any process.

    key                              type                what                          life
    kitbash:query:{id}               hash                state, times, answer, verdict 24 h, or while queued
    kitbash:query:{id}:{layer}:request  string, JSON     what a layer was asked        24 h
    kitbash:query:{id}:{layer}:result   string, JSON     what it said                  24 h
    kitbash:query:{id}:events        stream              that query's events           24 h
    kitbash:feed                     stream, capped      every event                   cap
    kitbash:actor:{name}             hash                heartbeat                     3 heartbeats
    kitbash:actors                   set                 names of those that beat      1 h after the last
    kitbash:cost:{day}               string, dollars     what layer 5 cost on a day    2 days
    kitbash:queue                    stream + group      queries to answer later       until acked
    kitbash:idempotency:{digest}     hash                query id of a key, its body   as long as the query
    kitbash:dead                     hash, JSON          queries that were given up    until requeued
    kitbash:work:{layer}             stream + group      work for workers elsewhere    until done, at most 1 h
    kitbash:work:{layer}:workers     sorted set          when each worker was heard    1 h after the last
    kitbash:work:results:{asker}     list                what they answered          until read, at most 1 min
    kitbash:probe                    string              written to see that one can   1 s

In a Redis cluster `{kitbash}:` stands for `kitbash:`, so that all keys are in one hash slot: what
is written together has to be. No other module writes a key. The blackboard is a fold over events: `operations` turns one into
what record.lua does with it. Not here: when it is written (recorder.py) and the feed (feed.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from msgspec import Struct
from redis.asyncio import Redis

from kitbash_ray.redis_client import answer_of, in_cluster
from kitbash_ray.types import Answer, Event, decode, encode

#: How keys begin, and how they begin in a cluster, where the part in braces decides about the slot.
PREFIX, CLUSTER_PREFIX = "kitbash:", "{kitbash}:"
#: Ids of questions that were called off, for the front-door replica that works on them; no key, nothing stays.
CALLED_OFF = PREFIX + "called-off"
#: Published by the head of several devices when it is stopped: the others end, too.
DOWN = PREFIX + "down"
#: Seconds between two heartbeats, and after how many missed ones an actor counts as gone.
HEARTBEAT_S, HEARTBEATS_MISSED = 1.0, 3
#: Seconds that the names of actors stay when none beats.
NAMES_KEPT_S = 3600
RECORD_SCRIPT = Path(__file__).with_name("record.lua")

#: The levels of DIAGNOSTIC_LEVEL, the noisiest first.
_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}


def prefix_of(redis: Any) -> str:
    """How the keys begin that this client reads and writes. Channels are no keys: they always begin with PREFIX."""
    return CLUSTER_PREFIX if in_cluster(redis) else PREFIX


def query_key(query_id: str, prefix: str = PREFIX) -> str:
    return f"{prefix}query:{query_id}"


def layer_key(query_id: str, layer: str, part: str, prefix: str = PREFIX) -> str:
    return f"{prefix}query:{query_id}:{layer}:{part}"


def events_key(query_id: str, prefix: str = PREFIX) -> str:
    return f"{prefix}query:{query_id}:events"


def work_key(layer: str, prefix: str = PREFIX) -> str:
    return f"{prefix}work:{layer}"


def workers_key(layer: str, prefix: str = PREFIX) -> str:
    return f"{prefix}work:{layer}:workers"


def results_key(asker: str, prefix: str = PREFIX) -> str:
    return f"{prefix}work:results:{asker}"


def edge_actor(layer: str, worker: str) -> str:
    """The name that a worker outside the cluster has among the actors; a layer's workers cannot take another's."""
    return f"edge:{layer}:{worker}"


def idempotency_key(digest: str, prefix: str = PREFIX) -> str:
    return f"{prefix}idempotency:{digest}"


def queue_key(prefix: str = PREFIX) -> str:
    """Queries that wait or are worked on (queue.py)."""
    return f"{prefix}queue"


def dead_letters_key(prefix: str = PREFIX) -> str:
    """Queries that were given up."""
    return f"{prefix}dead"


def feed_key(prefix: str = PREFIX) -> str:
    return f"{prefix}feed"


def actor_key(name: str, prefix: str = PREFIX) -> str:
    return f"{prefix}actor:{name}"


def actors_key(prefix: str = PREFIX) -> str:
    """The names of actors that have beaten: looking for their keys among those of all queries would take seconds."""
    return f"{prefix}actors"


def cost_key(day: str, prefix: str = PREFIX) -> str:
    return f"{prefix}cost:{day}"


class QueryState(Struct, frozen=True):
    """What the blackboard says of a query. Times are Unix seconds; `judged` is "right" or "wrong" once somebody said so.

    Of a queued one, `attempt` is the number of its latest claim, and `callback` what became of its callback.
    """

    query_id: str
    state: str
    text: str
    asked_at: float
    finished_at: float | None = None
    layer: str | None = None
    answer: Answer | None = None
    judged: str | None = None
    attempt: int = 0
    callback: str | None = None


def operations(events: Sequence[Event], *, level: str, prefix: str = PREFIX) -> bytes:
    """What record.lua has to do for `events`, as words each ended by a NUL byte; JSON holds none.

    The feed gets the events that `level` lets pass.
    """
    if not any(event.attempt for event in events):
        return _written(events, level, prefix)
    each = [(_fenced if event.attempt else _alone)(event, level, prefix) for event in events]
    return b"".join(each)


def _alone(event: Event, level: str, prefix: str) -> bytes:
    return _written([event], level, prefix)


def _fenced(event: Event, level: str, prefix: str) -> bytes:
    """The words for an event of a queued query; each has a fence of its own, because each may be the one that ends it."""
    words = _alone(event, level, prefix)
    return b"fence\0%b\0%d\0%d\0%b" % (query_key(event.query_id, prefix).encode(), event.attempt, len(words), words)


def _written(events: Sequence[Event], level: str, prefix: str) -> bytes:
    """What several events of one query change in its hash is written once, because the script is atomic."""
    words: list[bytes] = []
    hashes: dict[str, dict[bytes, bytes]] = {}
    for event in events:
        query_id = event.query_id
        to_feed = b"1" if passes(event, level) else b"0"
        words += (b"event", events_key(query_id, prefix).encode(), b"%d" % (event.seq + 1), to_feed, encode(event))
        if event.kind == "layer.started" and event.layer:
            words += (b"value", layer_key(query_id, event.layer, "request", prefix).encode(), encode(event.query))
        elif event.result:
            words += (b"value", layer_key(query_id, event.result.layer, "result", prefix).encode(), encode(event.result))
        _fold(hashes.setdefault(query_id, {}), event)
    for query_id, fields in hashes.items():
        if fields:
            words += (b"hash", query_key(query_id, prefix).encode(), b"%d" % (2 * len(fields)))
            for pair in fields.items():
                words += pair
    return b"\0".join((*words, b""))


def _fold(fields: dict[bytes, bytes], event: Event) -> None:
    """Set the fields of the query's hash that `event` changes."""
    if event.kind == "query.received" and event.query:
        fields[b"state"] = b"running"
        fields[b"text"] = event.query.text.replace("\0", " ").encode()
        fields[b"asked_at"] = b"%r" % event.query.asked_at
    elif event.kind == "layer.started" and event.layer:
        fields[b"layer"] = event.layer.encode()
    elif event.right is not None:
        fields[b"judged"] = b"right" if event.right else b"wrong"
    elif event.answer:
        fields[b"state"] = event.answer.status.encode()
        fields[b"finished_at"] = b"%r" % event.at
        fields[b"answer"] = encode(event.answer)


def passes(event: Event, level: str) -> bool:
    """Whether the feed keeps `event` at `level`."""
    if event.kind == "layer.delta":
        severity = "debug"
    elif event.right is not None:
        severity = "info" if event.right else "warning"
    elif event.result and event.result.outcome in ("failed", "timeout"):
        severity = "error"
    elif event.answer and event.answer.status != "answered":
        severity = "error" if event.answer.status == "failed" else "warning"
    else:
        severity = "info"
    return _LEVELS[severity] >= _LEVELS[level]


class Blackboard:
    """Reading the blackboard. Every method raises StoreError when Redis does not answer within seconds."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._prefix = prefix_of(redis)

    async def query(self, query_id: str) -> QueryState | None:
        """The state of a query, None if there is none (any more)."""
        fields = cast(dict[bytes, bytes], await answer_of(self._redis.hgetall(query_key(query_id, self._prefix))))
        if not fields:
            return None
        found = {name.decode(): value.decode() for name, value in fields.items()}
        return QueryState(
            query_id=query_id,
            state=found.get("state", "queued"),
            text=found.get("text", ""),
            asked_at=float(found.get("asked_at", 0)),
            finished_at=float(found["finished_at"]) if "finished_at" in found else None,
            layer=found.get("layer"),
            answer=decode(Answer, found["answer"]) if "answer" in found else None,
            judged=found.get("judged"),
            attempt=int(found.get("attempt", 0)),
            callback=found.get("callback"),
        )

    async def events(self, query_id: str) -> list[Event]:
        """The events of a query in order."""
        entries = await answer_of(self._redis.xrange(events_key(query_id, self._prefix)))
        return [decode(Event, fields[b"event"]) for _, fields in entries]

    async def actors(self) -> dict[str, dict[str, str]]:
        """The heartbeats of all living actors by name."""
        known = actors_key(self._prefix)
        names = sorted(name.decode() for name in await answer_of(cast(Awaitable[set[bytes]], self._redis.smembers(known))))
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(actor_key(name, self._prefix))
            beats = await answer_of(pipe.execute()) if names else []
        if gone := [name for name, beat in zip(names, beats, strict=True) if not beat]:
            await answer_of(self._redis.srem(known, *gone))  # one that comes back says so every second
        return {
            name: {field.decode(): value.decode() for field, value in beat.items()}
            for name, beat in zip(names, beats, strict=True)
            if beat
        }

    async def call_off(self, query_id: str) -> None:
        """Tell every front-door replica that this question is to be cancelled."""
        await answer_of(self._redis.publish(CALLED_OFF, query_id))

    async def called_off(self) -> AsyncGenerator[str, None]:
        """The ids of questions that are called off from now on."""
        await answer_of(self._redis.initialize())  # a cluster's client has to know the nodes first
        async with self._redis.pubsub() as channel:
            await answer_of(channel.subscribe(CALLED_OFF))
            while True:
                message = await answer_of(channel.get_message(ignore_subscribe_messages=True, timeout=1.0))
                if message:
                    yield message["data"].decode()

    async def ping(self) -> None:
        await answer_of(self._redis.ping())


def heartbeat(redis: Any, name: str, fields: Mapping[str, str]) -> None:
    """Say that an actor lives. `redis` is a synchronous client; raises RedisError."""
    with redis.pipeline(transaction=True) as pipe:
        add_heartbeat(pipe, name, fields, prefix_of(redis))
        pipe.execute()


def add_heartbeat(pipe: Any, name: str, fields: Mapping[str, str], prefix: str = PREFIX) -> None:
    """The commands of a heartbeat, for a pipeline of either kind of client."""
    key = actor_key(name, prefix)
    pipe.delete(key)
    pipe.hset(key, mapping=dict(fields))
    pipe.expire(key, int(HEARTBEAT_S * HEARTBEATS_MISSED))
    pipe.sadd(actors_key(prefix), name)
    pipe.expire(actors_key(prefix), NAMES_KEPT_S)


def probe(redis: Any) -> None:
    """Write something that nobody reads. `redis` is a synchronous client; raises one of FAULTS when writes are refused."""
    redis.set(f"{prefix_of(redis)}probe", "", ex=1)
