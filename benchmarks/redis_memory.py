"""Whether Redis stays as small as the blackboard promises: everything expires, or is capped.

A private Redis, one orchestrator and the real layers over the shipped cartridges (layers 1 and
4 without a model, as after a fresh installation; no Ray). Questions come at a fixed rate, so
that the queries alive at a time are as many in the second half as in the first:
80 % exact, 15 % matched by meaning, 5 % that layer 0 hands on. Life and cap are small, so that
most of what was written is gone long before the end. Memory is the median of `used_memory`
over the last life time of each half, which smooths the bursts in which Redis expires keys;
and once more at rest, when every query has expired.

It says nothing of speed, and nothing of the append-only file on disk.

    python -m benchmarks.redis_memory [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from actors.orchestrator import Orchestrator
from benchmarks.common import finish, print_table
from kitbash_ray.blackboard import Blackboard, feed_key, query_key
from kitbash_ray.config import child_environment, load_settings
from kitbash_ray.direct import Direct
from kitbash_ray.feed import Feed
from kitbash_ray.knowledge.library import Library
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.types import Answer, Query

TARGETS = {"keys_without_ttl": ("<=", 0), "used_memory_growth": ("<=", 1.03), "feed_entries_over_cap": ("<=", 0)}
SHARES = {"exact": 0.80, "by meaning": 0.15, "handed on": 0.05}
#: Questions worked on at once, and samples of `used_memory` per second.
WORKERS, SAMPLES_PER_S = 8, 10
#: A stream is trimmed by whole nodes of up to so many entries (Redis' stream-node-max-entries).
NODE_ENTRIES = 100


@dataclass(frozen=True)
class Plan:
    """Questions of each half, how many a second, seconds a query lives, events the feed keeps."""

    questions: int
    per_s: float
    ttl_s: int
    feed_maxlen: int


FULL = Plan(10_000, 150, 15, 5_000)
QUICK = Plan(1_000, 150, 2, 1_000)


@dataclass(frozen=True)
class Keys:
    """What SCAN found: all keys, those that would stay for ever, and the queries they belong to."""

    total: int
    without_ttl: int
    queries: int
    feed_entries: int


@contextmanager
def private_redis() -> Iterator[str]:
    """The address of a Redis of our own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        pid = server.start(child_environment())
        try:
            yield f"unix://{server.socket}"
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def way(answer: Answer) -> str:
    """Which of the SHARES a question turned out to belong to."""
    if answer.layer != "grain" or answer.status != "answered":
        return "handed on"
    return "exact" if answer.sources[0].score == 1.0 else "by meaning"


async def sort_questions(direct: Direct, library: Library) -> dict[str, list[str]]:
    """The cartridges' askings and held-out questions by the way in which they are answered."""
    cartridges = library.load().cartridges
    texts = [ask for cartridge in cartridges for fact in cartridge.facts for ask in fact.asks]
    texts += [question.query for cartridge in cartridges for question in cartridge.questions]
    pools: dict[str, list[str]] = {name: [] for name in SHARES}
    for text in texts:
        pools[way(await direct.ask(Query(text)))].append(text)
    return pools


def mixed(pools: dict[str, list[str]], count: int, chance: random.Random) -> list[str]:
    """`count` questions, of each way exactly its share, in random order."""
    texts = [text for name, share in SHARES.items() for text in chance.choices(pools[name], k=round(share * count))]
    chance.shuffle(texts)
    return texts


async def ask_all(orchestrator: Orchestrator, texts: Sequence[str], per_s: float) -> Counter[str]:
    """Ask at a fixed rate, or as fast as it goes where that is slower; how many went which way."""
    ways: Counter[str] = Counter()
    began = time.monotonic()
    waiting = enumerate(texts)

    async def work() -> None:
        for number, text in waiting:
            await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
            ways[way(await orchestrator.ask(Query(text)))] += 1

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return ways


async def used_memory(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


async def sample(redis: Redis, samples: list[int]) -> None:
    """Note the memory in use again and again, until cancelled."""
    while True:
        samples.append(await used_memory(redis))
        await asyncio.sleep(1 / SAMPLES_PER_S)


async def scan(redis: Redis) -> Keys:
    names = [name async for name in redis.scan_iter(count=1000)]
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.ttl(name)
        ttls = await pipe.execute()
    for_ever = [name.decode() for name, ttl in zip(names, ttls, strict=True) if ttl == -1]
    prefix = query_key("")
    queries = {name.decode().removeprefix(prefix).split(":")[0] for name in names if name.decode().startswith(prefix)}
    return Keys(len(names), sum(name != feed_key() for name in for_ever), len(queries), await redis.xlen(feed_key()))


async def at_rest(redis: Redis, ttl_s: int) -> int:
    """Memory in use when only the feed is left."""
    for _ in range(5 * (ttl_s + 30)):
        if await redis.dbsize() <= 1:
            break
        await asyncio.sleep(0.2)
    return await used_memory(redis)


async def run(url: str, plan: Plan) -> None:
    settings = load_settings().model_copy(update={"bitnet_model": None, "kobold_model": None})
    direct = Direct(settings)
    pools = await sort_questions(direct, Library(settings.cartridges_dir))
    with tempfile.TemporaryDirectory() as folder:
        spool = Path(folder) / "spool"
        recorder = Recorder(connect(url), ttl_s=plan.ttl_s, feed_maxlen=plan.feed_maxlen, level="info", spool=spool)
        orchestrator = Orchestrator(direct.cascade, recorder, Blackboard(connect(url)), Feed(connect(url)))
        redis = connect(url)
        empty = await used_memory(redis)
        chance = random.Random(0)
        rows, medians, resting, seen = [], [], [], []
        for half in ("first", "second"):
            samples: list[int] = []
            sampling = asyncio.create_task(sample(redis, samples))
            began = time.monotonic()
            ways = await ask_all(orchestrator, mixed(pools, plan.questions, chance), plan.per_s)
            await recorder.flush()
            sampling.cancel()
            seconds = time.monotonic() - began
            keys = await scan(redis)
            medians.append(statistics.median(samples[-plan.ttl_s * SAMPLES_PER_S :]))
            resting.append(await at_rest(redis, plan.ttl_s))
            seen.append(keys)
            assert recorder.healthy, "Redis was away"
            assert not spool.exists(), "not everything was written to Redis"
            assert ways.total() == plan.questions
            rows.append(
                (half, " / ".join(str(ways[name]) for name in SHARES), f"{plan.questions / seconds:.0f}", keys.total, keys.without_ttl,
                 keys.queries, keys.feed_entries, f"{medians[-1] / 1e6:.2f}", f"{resting[-1] / 1e6:.2f}")
            )  # fmt: skip
        await recorder.close()
        await redis.aclose()
    columns = ("half", " / ".join(SHARES), "per s", "keys", "no TTL", "queries", "feed", "MB", "MB at rest")
    print_table(f"{plan.ttl_s} s life, feed of {plan.feed_maxlen:,}; {empty / 1e6:.2f} MB when empty", columns, rows)
    metrics = {
        "keys_without_ttl": max(keys.without_ttl for keys in seen),
        "used_memory_growth": round(medians[1] / medians[0], 4),
        "at_rest_growth": round(resting[1] / resting[0], 4),
        "used_memory_mb": round(medians[1] / 1e6, 2),
        "feed_entries_over_cap": max(0, max(keys.feed_entries for keys in seen) - plan.feed_maxlen - NODE_ENTRIES),
        "bytes_per_query": round((medians[1] - resting[1]) / seen[1].queries),
        "bytes_per_feed_event": round((resting[1] - empty) / seen[1].feed_entries),
        "queries": 2 * plan.questions,
    }
    finish("redis_memory", metrics, TARGETS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="twice 1,000 questions instead of twice 10,000")
    plan = QUICK if parser.parse_args().quick else FULL
    with private_redis() as url:
        asyncio.run(run(url, plan))


if __name__ == "__main__":
    main()
