"""The Python client: `from kitbash_ray import Kitbash; Kitbash().ask("What is ATP?")`.

Speaks HTTP with a front door and finds address and token by itself where `kitbash up` ran.
One client, synchronous: notebooks and scripts want that, and it may be used from threads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx
from msgspec import convert

from kitbash_ray.config import Settings, load_settings
from kitbash_ray.errors import ClientError, Interrupted, NotRunning, Unauthorized
from kitbash_ray.state import front_door_url
from kitbash_ray.token import find_token
from kitbash_ray.types import Answer, DeadLetter, Event, Faction, Turn, decode

CONNECT_S = 5.0
#: Seconds without any byte after which a reply counts as lost; a layer may be thinking.
READ_S = 180.0
#: Seconds that one request waits for the end of a queued question, and the least between two of them.
WAIT_S, PAUSE_S = 30.0, 0.2
#: Seconds between two attempts to go on with the feed.
RETRY_S = 1.0


class Kitbash:
    """A connection to a front door. Use it as a context manager, or `close` it."""

    def __init__(self, url: str | None = None, token: str | None = None, *, settings: Settings | None = None) -> None:
        """Raises Unauthorized when no token is given and none is found."""
        settings = settings or load_settings()
        self.url = (url or front_door_url(settings)).rstrip("/")
        headers = {"Authorization": f"Bearer {token or find_token(settings)}"}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(READ_S, connect=CONNECT_S), trust_env=False
        )

    def ask(
        self,
        query: str,
        *,
        history: Sequence[Turn] = (),
        factions: Sequence[Faction] = ("general",),
        cartridges: Sequence[str] = (),
        max_error: float | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """The answer to a question. Raises ClientError when the front door refuses it."""
        body = _body(query, history, factions, cartridges, max_error, timeout_s)
        return decode(Answer, self._call("POST", "/v1/query", body).content)

    def stream(
        self,
        query: str,
        *,
        history: Sequence[Turn] = (),
        factions: Sequence[Faction] = ("general",),
        cartridges: Sequence[str] = (),
        max_error: float | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Event]:
        """The events of a question as they happen; the last one carries the answer."""
        body = _body(query, history, factions, cartridges, max_error, timeout_s)
        return self._events("POST", "/v1/query/stream", body)

    def submit(
        self,
        query: str,
        *,
        history: Sequence[Turn] = (),
        factions: Sequence[Faction] = ("general",),
        cartridges: Sequence[str] = (),
        max_error: float | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
        callback_url: str | None = None,
    ) -> str:
        """Queue a question and return its id; `result` gets the answer, and `callback_url` is sent it.

        With the same `idempotency_key` the same question is queued once, however often this is called.
        """
        body = _body(query, history, factions, cartridges, max_error, timeout_s)
        if callback_url is not None:
            body["callback_url"] = callback_url
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return str(self._call("POST", "/v1/queries", body, headers).json()["query_id"])

    def result(self, query_id: str, *, wait: float | None = None) -> Answer:
        """The answer to a queued question, after at most `wait` seconds; None: however long it takes.

        Raises ClientError when there is none yet.
        """
        until = time.monotonic() + (math.inf if wait is None else wait)
        while True:
            began = time.monotonic()
            seconds = max(0.0, min(until - began, WAIT_S))
            found = self._call("GET", f"/v1/queries/{query_id}?wait={seconds:.3f}").json()
            if found["answer"]:
                return convert(found["answer"], Answer)
            now = time.monotonic()
            if now >= until:
                raise ClientError(f"The question {query_id} is still {found['state']}; ask for its result later.")
            time.sleep(max(0.0, PAUSE_S - (now - began)))  # a front door with too many that wait replies at once

    def queue(self) -> dict[str, int]:
        """How many questions wait, are worked on and were given up."""
        return self._told("GET", "/v1/queue")

    def dead_letters(self) -> list[DeadLetter]:
        """The questions that were given up, the oldest first."""
        return decode(list[DeadLetter], self._call("GET", "/v1/dead-letters").content)

    def requeue(self, query_id: str) -> None:
        """Try a question again that was given up. Raises ClientError when there is none of that id."""
        self._call("POST", f"/v1/dead-letters/{query_id}/requeue")

    def drop(self, query_id: str) -> None:
        """Forget a question that was given up. Raises ClientError when there is none of that id."""
        self._call("DELETE", f"/v1/dead-letters/{query_id}")

    def feed(
        self, after: str = "$", *, follow: bool = True, interrupted: Callable[[str], None] | None = None
    ) -> Iterator[Event]:
        """Every event of all questions from now on (`after="0"`: from the oldest kept). Ends only without `follow`.

        When Redis goes away, `interrupted` is told why, and the feed goes on where it was when Redis is back. What a
        Redis that died had not written to its disk yet may come twice.
        """
        begun = told = False
        while True:
            try:
                for place, event in self._entries("GET", f"/v1/feed?after={after}&follow={str(follow).lower()}", None):
                    after, begun, told = place or after, True, False
                    if event:
                        yield event
                return
            except Interrupted as error:
                if not (begun and follow):
                    raise
                if interrupted and not told:
                    interrupted(str(error))
                told = True
                time.sleep(RETRY_S)

    def feedback(self, query_id: str, right: bool) -> None:
        """Say whether an answer was right. Raises ClientError when there is none (any more)."""
        self._call("POST", f"/v1/queries/{query_id}/feedback", {"right": right})

    def layers(self) -> list[dict[str, Any]]:
        """The layers with their device, state and load."""
        found: list[dict[str, Any]] = self._call("GET", "/v1/layers").json()
        return found

    def replicas(self) -> list[dict[str, Any]]:
        """The replicas of the front door, in the same way."""
        found: list[dict[str, Any]] = self._call("GET", "/v1/replicas").json()
        return found

    def cancel(self, query_id: str) -> None:
        """End a question that is being worked on. Raises ClientError when it is not."""
        self._call("DELETE", f"/v1/queries/{query_id}")

    def adapters(self, layer: str = "kobold") -> dict[str, Any]:
        """The LoRA adapter in use, the one before it, and those that are there."""
        return self._told("GET", f"/v1/layers/{layer}/adapter")

    def use_adapter(self, name: str | None, layer: str = "kobold") -> dict[str, Any]:
        """Swap a layer's adapter between two generations; None for the bare model."""
        return self._told("PUT", f"/v1/layers/{layer}/adapter", {"name": name})

    def roll_back_adapter(self, layer: str = "kobold") -> dict[str, Any]:
        """Go back to the adapter before."""
        return self._told("POST", f"/v1/layers/{layer}/adapter/rollback")

    def _told(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        told: dict[str, Any] = self._call(method, path, body).json()
        return told

    def query(self, query_id: str) -> dict[str, Any]:
        """The state of a question on the blackboard."""
        return self._told("GET", f"/v1/queries/{query_id}")

    def events(self, query_id: str) -> list[Event]:
        """What happened to a question, in order."""
        return decode(list[Event], self._call("GET", f"/v1/queries/{query_id}/events").content)

    def ready(self) -> dict[str, Any]:
        """The front door's own health."""
        found: dict[str, Any] = self._call("GET", "/health/ready").json()
        return found

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Kitbash:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        try:
            reply = self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        raise_for(reply)
        return reply

    def _events(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[Event]:
        return (event for _, event in self._entries(method, path, body) if event)

    def _entries(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[tuple[str, Event | None]]:
        """The events of a stream with their ids. Without an event: the stream is alive, and here is where it is, if it says so."""
        try:
            with self._http.stream(method, path, json=body) as reply:
                if reply.status_code != httpx.codes.OK:
                    reply.read()
                    raise_for(reply)
                place = kind = ""
                for line in reply.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "id":
                        place = value
                    elif name == "data" and kind == "error":
                        raise Interrupted(str(json.loads(value)["message"]))
                    elif name == "data":
                        yield place, decode(Event, value)
                    elif not line:
                        kind = ""
                        yield place, None
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    def _lost(self, error: httpx.HTTPError) -> ClientError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return NotRunning(f"No front door answers at {self.url}: start one with `kitbash up`, or set KITBASH_URL.")
        return ClientError(f"The connection to {self.url} was lost: {error or type(error).__name__}")


def _body(
    query: str,
    history: Sequence[Turn],
    factions: Sequence[Faction],
    cartridges: Sequence[str],
    max_error: float | None,
    timeout_s: float | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"query": query, "factions": list(factions), "cartridges": list(cartridges)}
    if history:
        body["history"] = [{"role": turn.role, "text": turn.text} for turn in history]
    limits = {"max_error": max_error, "timeout_s": timeout_s}
    return body | {name: value for name, value in limits.items() if value is not None}


def raise_for(reply: httpx.Response) -> None:
    """Raises ClientError with the front door's own sentence when it refused."""
    if reply.status_code < httpx.codes.BAD_REQUEST:
        return
    try:
        message = str(reply.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        message = f"The front door replied {reply.status_code} {reply.reason_phrase}."
    kind = Unauthorized if reply.status_code == httpx.codes.UNAUTHORIZED else ClientError
    raise kind(message, status=reply.status_code)
