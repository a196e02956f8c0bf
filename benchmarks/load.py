"""Questions at a fixed rate, as several clients would send them, and what became of each.

Half of them are asked and waited for; the other half are handed in (`POST /v1/queries`) under an
Idempotency-Key, and handed in again under the same key until they are accepted, as a careful client
does. Afterwards every accepted one is looked up. A question whose answer is known is wrong if an
answer with a confidence cites something else. Not here: what happens to the cluster meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

#: Seconds that a client waits for an answer, for being let in, and for what was accepted to end.
ANSWER_S, ACCEPTED_S, DRAIN_S = 60.0, 60.0, 90.0
RETRY_S = 0.25
ENDED = ("answered", "abstained", "failed", "cancelled")


@dataclass(frozen=True)
class Known:
    """A question, the layer that answers it when all is well, and the fact that is right (none: nobody can tell)."""

    text: str
    layer: str
    fact_id: str | None = None


@dataclass
class Sent:
    """One question and its end. `failure` is why there was no answer to a waiting client; times are monotonic seconds."""

    known: Known
    began: float
    ended: float = 0.0
    query_id: str | None = None
    answer: dict[str, Any] | None = None
    failure: str | None = None

    @property
    def status(self) -> str:
        return str(self.answer["status"]) if self.answer else "failed"

    @property
    def wrong(self) -> bool:
        """Answered with a confidence, and with something else than what is right."""
        if self.status != "answered" or self.known.fact_id is None or self.answer is None:
            return False
        cited = {source["fact_id"] for source in self.answer["sources"]}
        return self.answer["confidence"] is not None and self.known.fact_id not in cited


@dataclass
class Traffic:
    """What was sent: waited for, and handed in."""

    waited: list[Sent] = field(default_factory=list)
    handed_in: list[Sent] = field(default_factory=list)
    #: Accepted questions without an end, and those with more than one.
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def since(self, began: float) -> list[Sent]:
        """Failures of clients that began to wait after this moment."""
        return [sent for sent in self.waited if sent.failure and sent.began > began]

    @property
    def wrong(self) -> int:
        return sum(sent.wrong for sent in (*self.waited, *self.handed_in))

    def statuses(self) -> Counter[str]:
        return Counter(sent.status for sent in (*self.waited, *self.handed_in))

    def failures(self) -> Counter[str]:
        return Counter(sent.failure for sent in self.waited if sent.failure)


class Load:
    """Sends questions from `mix` at `rate` a second to the front door at `url`."""

    def __init__(self, url: str, token: str, mix: Sequence[Known], rate: float, seed: int = 0) -> None:
        self._url, self._mix, self._rate = url, mix, rate
        self._headers = {"Authorization": f"Bearer {token}"}
        self._random = random.Random(seed)
        self._enough = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Traffic]:
        """The load is on meanwhile; afterwards all that was accepted has been looked up."""
        traffic, position = Traffic(), str(int(time.time() * 1000))  # an entry of the feed is called after its time
        self._enough.clear()
        thread = threading.Thread(target=lambda: asyncio.run(self._send(traffic)), daemon=True)
        thread.start()
        try:
            yield traffic
        finally:
            self._enough.set()
            thread.join(ANSWER_S + ACCEPTED_S + DRAIN_S)
        traffic.twice = self._ended_twice(traffic, position)

    async def _send(self, traffic: Traffic) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=32)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=ANSWER_S, trust_env=False, limits=limits
        ) as http:
            tasks: list[asyncio.Task[None]] = []
            began, number = time.monotonic(), 0
            while not self._enough.is_set():
                known = self._random.choice(self._mix)
                waits = number % 2 == 0
                sent = Sent(known, time.monotonic())
                (traffic.waited if waits else traffic.handed_in).append(sent)
                tasks.append(asyncio.create_task((_ask if waits else _hand_in)(http, sent)))
                number += 1
                await asyncio.sleep(max(0.0, began + number / self._rate - time.monotonic()))
            await asyncio.gather(*tasks)
            accepted = [sent for sent in traffic.handed_in if sent.query_id]
            await _each(accepted, lambda sent: _look_up(http, sent), at_once=8)
            traffic.lost = [str(sent.query_id) for sent in accepted if sent.answer is None]

    def _ended_twice(self, traffic: Traffic, position: str) -> list[str]:
        """Accepted questions that the feed saw end more than once."""
        ours = {sent.query_id for sent in traffic.handed_in}
        ends: Counter[str] = Counter()
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=ANSWER_S, trust_env=False) as http:
            for event in _events(http, position):
                if "kind" not in event:
                    raise RuntimeError(f"the feed broke off: {event}")
                if event["kind"] == "query.finished":
                    ends[event["query_id"]] += 1
        return [query_id for query_id, times in ends.items() if times > 1 and query_id in ours]


async def _ask(http: httpx.AsyncClient, sent: Sent) -> None:
    try:
        reply = await http.post("/v1/query", json={"query": sent.known.text})
        if reply.status_code == httpx.codes.OK:
            sent.answer = reply.json()
            if sent.status == "failed":
                sent.failure = "every layer failed"
        else:
            sent.failure = f"HTTP {reply.status_code}"
    except httpx.HTTPError as error:
        sent.failure = type(error).__name__
    sent.ended = time.monotonic()


async def _hand_in(http: httpx.AsyncClient, sent: Sent) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    while time.monotonic() - sent.began < ACCEPTED_S:
        try:
            reply = await http.post("/v1/queries", json={"query": sent.known.text}, headers=key)
            if reply.status_code == httpx.codes.ACCEPTED:
                sent.query_id = str(reply.json()["query_id"])
                return
            sent.failure = f"HTTP {reply.status_code}"
        except httpx.HTTPError as error:
            sent.failure = type(error).__name__
        await asyncio.sleep(RETRY_S)


async def _look_up(http: httpx.AsyncClient, sent: Sent) -> None:
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end:
        try:
            reply = await http.get(f"/v1/queries/{sent.query_id}")
            if reply.status_code == httpx.codes.OK and reply.json()["state"] in ENDED:
                sent.answer, sent.ended = reply.json()["answer"], time.monotonic()
                return
        except httpx.HTTPError as error:
            sent.failure = type(error).__name__
        await asyncio.sleep(RETRY_S)


async def _each(items: Sequence[Sent], work: Callable[[Sent], Any], at_once: int) -> None:
    waiting = iter(items)

    async def one() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(one() for _ in range(at_once)))


def _events(http: httpx.Client, after: str) -> Iterator[dict[str, Any]]:
    """What is in the feed after that entry."""
    with http.stream("GET", "/v1/feed", params={"after": after, "follow": "false"}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))
