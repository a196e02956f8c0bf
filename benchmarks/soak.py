"""Whether anything grows while 100,000 questions are answered at a steady rate, four fifths of the highest.

A cluster of its own on this machine, with tiny random models in layers 1 and 4. Clients ask one
question after the other over HTTP: 90 % exact for layer 0, 8 % by meaning, 1 % for layer 2 and 1 %
for layer 4. Queries live for seconds and the feed is short, so that what Redis holds is steady after
the first quarter. The memory of each process (proportional set size, so that what is shared counts
once) and of Redis (`used_memory`) is sampled; the ratio is the median of the last quarter over that of the second.

It says nothing of faults (chaos.py), nor of how fast the front door is (front_door.py).

    python -m benchmarks.soak [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import redis

from benchmarks.common import finish, percentile, print_table
from benchmarks.own_cluster import OwnCluster, own_cluster
from kitbash_ray.config import CLUSTER_MARK, load_settings
from kitbash_ray.knowledge.library import Library
from kitbash_ray.state import read_record
from kitbash_ray.tiny_model import write_tiny_gguf

TARGETS = {"errors": ("<=", 0), "memory_growth_ratio": ("<=", 1.03)}
SHARES = {"exact": 0.90, "by meaning": 0.08, "layer 2": 0.01, "layer 4": 0.01}
CLIENTS = 16
#: The share of the questions that is asked as fast as they are answered, and the share of that rate that is kept from
#: then on: what Redis holds is the questions of some seconds, and would rise and fall with the speed of the machine.
WARM, STEADY = 0.05, 0.8
SAMPLE_S = 3.0
#: Seconds between two lines that say how far it is.
TELL_S = 30.0
#: A process below this is left out: a few pages more are per cent there.
LEAST_MB = 20.0
SETTINGS = {"KITBASH_QUERY_TTL": "15", "KITBASH_FEED_MAXLEN": "5000", "KOBOLD_MAX_TOKENS": "4", "BITNET_MAX_TOKENS": "4"}


class Soak:
    """The clients and what they saw."""

    def __init__(self, own: OwnCluster, questions: int) -> None:
        self._own, self._questions = own, questions
        self._pools = pools()
        self.errors: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.ms: list[float] = []
        self.asked = 0
        self._began = 0.0
        #: When the steady rate began, with which question, and the seconds between two.
        self._steady: tuple[float, int, float] | None = None

    async def run(self) -> None:
        self._began = time.perf_counter()
        headers = {"Authorization": f"Bearer {self._own.token}"}
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(
            base_url=self._own.url, headers=headers, timeout=60, limits=limits, trust_env=False
        ) as http:
            await asyncio.gather(*(self._client(http, random.Random(number)) for number in range(CLIENTS)))

    async def _client(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        while self.asked < self._questions:
            self.asked += 1
            await self._turn(self.asked)
            [way] = chance.choices(list(SHARES), weights=list(SHARES.values()))
            began = time.perf_counter()
            try:
                reply = await http.post("/v1/query", json={"query": chance.choice(self._pools[way])})
                reply.raise_for_status()
                answer = reply.json()
                self.answers[f"{answer['status']} by {answer['layer']}"] += 1
                if answer["status"] == "failed" or not answer["recorded"]:
                    self.errors[answer["reason"] if answer["status"] == "failed" else "not recorded"] += 1
            except httpx.HTTPError as error:
                self.errors[f"{type(error).__name__} {error}"[:80]] += 1
            self.ms.append((time.perf_counter() - began) * 1000)

    async def _turn(self, number: int) -> None:
        """Return when it is this question's turn."""
        if number < self._questions * WARM:
            return
        now = time.perf_counter()
        if self._steady is None:
            self._steady = now, number, (now - self._began) / number / STEADY
        began, first, apart_s = self._steady
        await asyncio.sleep(max(0.0, began + (number - first) * apart_s - now))

    async def tell(self) -> None:
        """Say how far it is, until cancelled."""
        began = time.perf_counter()
        while True:
            await asyncio.sleep(TELL_S)
            rate = max(len(self.ms), 1) / (time.perf_counter() - began)
            left_s = (self._questions - len(self.ms)) / rate
            print(
                f"{len(self.ms):,} answered, {rate:.0f} a second, {left_s:.0f} s left; errors: {dict(self.errors)}", flush=True
            )


def pools() -> dict[str, list[str]]:
    """Questions for each way, from the shipped cartridges."""
    library = Library(load_settings().cartridges_dir).load()
    general = [cartridge for cartridge in library.cartridges if cartridge.manifest.faction == "general"]
    asks = [ask for cartridge in general for fact in cartridge.facts for ask in fact.asks]
    held_out = [question.query for cartridge in general for question in cartridge.questions if question.expected]
    return {
        "exact": asks,
        "by meaning": held_out,
        "layer 2": ["What is the default port of Redis and of the Ray dashboard?"],
        "layer 4": [f"Who won the {year} football World Cup?" for year in range(1930, 2026, 4)],
    }


class Memory:
    """Samples of what each process and Redis hold, with how many questions had been asked."""

    def __init__(self, soak: Soak, cluster_id: str, redis_url: str) -> None:
        self._soak, self._cluster_id = soak, cluster_id
        self._redis = redis.Redis.from_url(redis_url)
        self.samples: dict[str, list[tuple[int, float]]] = defaultdict(list)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            for name, megabytes in await asyncio.to_thread(self._look):
                self.samples[name].append((self._soak.asked, megabytes))
            await asyncio.sleep(SAMPLE_S)

    def _look(self) -> list[tuple[str, float]]:
        seen = [("Redis, used_memory", int(self._redis.info("memory")["used_memory"]) / 2**20)]
        for process in self._processes():
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                name = title.split()[0].split("/")[-1] if title.startswith("ray::") else process.name()
                seen.append((f"{name} ({process.pid})", process.memory_full_info().pss / 2**20))
        return seen

    def _processes(self) -> Iterator[psutil.Process]:
        sessions = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(CLUSTER_MARK) == self._cluster_id:
                    sessions.add(process.pid)
                    yield process
                elif process.ppid() in sessions:
                    yield process

    def growth(self, name: str, total: int) -> tuple[float, float, float] | None:
        """Megabytes in the second and the last quarter, and their ratio; None for what did not live through both."""
        second = [mb for asked, mb in self.samples[name] if total / 4 <= asked < total / 2]
        last = [mb for asked, mb in self.samples[name] if asked >= total * 3 / 4]
        if len(second) < 2 or len(last) < 2:
            return None
        before, after = statistics.median(second), statistics.median(last)
        return before, after, after / before


async def soaked(soak: Soak, memory: Memory) -> float:
    beside = [asyncio.create_task(memory.watch()), asyncio.create_task(soak.tell())]
    began = time.perf_counter()
    await soak.run()
    for task in beside:
        task.cancel()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 questions instead of 100,000")
    total = 10_000 if parser.parse_args().quick else 100_000
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))
    models = {f"{layer}_MODEL": str(write_tiny_gguf(folder / f"{layer}.gguf")) for layer in ("BITNET", "KOBOLD")}
    with own_cluster(folder, **models, **SETTINGS) as own:
        settings = load_settings()
        found = read_record(settings)
        assert found is not None
        soak = Soak(own, total)
        memory = Memory(soak, found.id, settings.resolved_redis_url)
        seconds = asyncio.run(soaked(soak, memory))
    grown = {name: growth for name in memory.samples if (growth := memory.growth(name, total))}
    counted = {name: growth for name, growth in grown.items() if growth[0] >= LEAST_MB or name.startswith("Redis")}
    print_table(
        f"{total:,} questions, {total / seconds:.0f} a second, p50 {percentile(soak.ms, 0.5):.1f} ms, p99 {percentile(soak.ms, 0.99):.0f} ms",
        ("process", "MB, second quarter", "MB, last quarter", "ratio"),
        [(name, f"{a:.1f}", f"{b:.1f}", f"{ratio:.3f}") for name, (a, b, ratio) in sorted(counted.items())],
    )
    print(dict(soak.answers), dict(soak.errors))
    metrics = {
        "errors": sum(soak.errors.values()),
        "memory_growth_ratio": round(max(ratio for _, _, ratio in counted.values()), 3),
        "questions": total,
        "questions_per_s": round(total / seconds, 1),
    }
    finish("soak", metrics, TARGETS)


if __name__ == "__main__":
    main()
