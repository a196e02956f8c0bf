"""The Python client: `from kitbash_ray import Kitbash; Kitbash().ask("What is ATP?")`.

Speaks HTTP with a front door and finds address and token by itself where `kitbash up` ran.
One client, synchronous: notebooks and scripts want that, and it may be used from threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx

from kitbash_ray.config import Settings, load_settings
from kitbash_ray.errors import ClientError, NotRunning, Unauthorized
from kitbash_ray.state import front_door_url
from kitbash_ray.token import find_token
from kitbash_ray.types import Answer, Event, Faction, Turn, decode

CONNECT_S = 5.0
#: Seconds without any byte after which a reply counts as lost; a layer may be thinking.
READ_S = 180.0


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

    def feed(self, after: str = "$", *, follow: bool = True) -> Iterator[Event]:
        """Every event of all questions from now on (`after="0"`: from the oldest kept). Ends only without `follow`."""
        return self._events("GET", f"/v1/feed?after={after}&follow={str(follow).lower()}", None)

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
        found: dict[str, Any] = self._call("GET", f"/v1/queries/{query_id}").json()
        return found

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

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            reply = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        _raise_for(reply)
        return reply

    def _events(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[Event]:
        try:
            with self._http.stream(method, path, json=body) as reply:
                if reply.status_code != httpx.codes.OK:
                    reply.read()
                    _raise_for(reply)
                kind = ""
                for line in reply.iter_lines():
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    elif line.startswith("data: ") and kind == "error":
                        raise ClientError(str(json.loads(line.removeprefix("data: "))["message"]))
                    elif line.startswith("data: "):
                        yield decode(Event, line.removeprefix("data: "))
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


def _raise_for(reply: httpx.Response) -> None:
    if reply.status_code < httpx.codes.BAD_REQUEST:
        return
    try:
        message = str(reply.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        message = f"The front door replied {reply.status_code} {reply.reason_phrase}."
    kind = Unauthorized if reply.status_code == httpx.codes.UNAUTHORIZED else ClientError
    raise kind(message, status=reply.status_code)
