"""Two ways to ask with one face: the running cluster over HTTP, or all layers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from kitbash_ray.cli.console import errors, progress_bar
from kitbash_ray.client import Kitbash
from kitbash_ray.config import Settings
from kitbash_ray.errors import ConfigError, InvalidQuery
from kitbash_ray.knowledge.grain_index import known_cartridges
from kitbash_ray.state import running
from kitbash_ray.types import LAYER_NUMBERS, MAX_QUERY_CHARS, Answer, Event, Query, is_visible

Mode = Literal["direct", "redis"]


class Asker(Protocol):
    mode: Mode

    def events(self, query: Query) -> Iterator[Event]:
        """The events of a question as they happen."""
        ...

    def layers(self) -> list[dict[str, Any]]: ...

    def close(self) -> None: ...


def ask(asker: Asker, query: Query) -> Answer:
    """The answer to `query`. Raises InvalidQuery for a question that cannot be asked."""
    answer: Answer | None = None
    for event in asker.events(query):
        answer = event.answer or answer
    assert answer is not None  # the last event carries it
    return answer


def checked(query: Query) -> Query:
    """The query. Raises InvalidQuery when it is empty or too long."""
    text = query.text.strip()
    if not is_visible(text):
        raise InvalidQuery("The question is empty.")
    if len(text) > MAX_QUERY_CHARS:
        raise InvalidQuery(f"The question has {len(text)} characters; {MAX_QUERY_CHARS} are the most.")
    return query


class ClusterAsker:
    """Asks the front door."""

    mode: Mode = "redis"

    def __init__(self, settings: Settings) -> None:
        self._client = Kitbash(settings=settings)

    def events(self, query: Query) -> Iterator[Event]:
        checked(query)
        return self._client.stream(
            query.text,
            history=query.history,
            factions=query.factions,
            cartridges=query.cartridges,
            max_error=query.max_error,
            timeout_s=query.deadline_s,
        )

    def layers(self) -> list[dict[str, Any]]:
        return self._client.layers()

    def close(self) -> None:
        self._client.close()


class DirectAsker:
    """Asks the layers in this process. Opening it loads the models once."""

    mode: Mode = "direct"

    def __init__(self, settings: Settings) -> None:
        from kitbash_ray.direct import Direct

        with progress_bar("indexing the cartridges") as report:
            self._direct = Direct(settings, report)
        for problem in self._direct.problems:
            errors.print(f"[yellow]left out:[/] {problem}", soft_wrap=True)
        self._loop = asyncio.new_event_loop()

    def events(self, query: Query) -> Iterator[Event]:
        checked(query)
        known_cartridges(query, self._direct.cartridges)
        events = self._direct.events(query)
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(events))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(events.aclose())

    def layers(self) -> list[dict[str, Any]]:
        return [
            {"layer": name, "number": LAYER_NUMBERS[name], **_state(layer)}
            for name, layer in self._direct.cascade.layers.items()
        ]

    def close(self) -> None:
        self._loop.close()


def open_asker(mode: Mode | None, settings: Settings, *, own_cartridges: bool = False) -> Asker:
    """The asker of `mode`; without one, the running cluster, else this process.

    `own_cartridges`: a folder was named on the command line, which only this process can read.
    """
    if own_cartridges and mode == "redis":
        raise ConfigError("--cartridges works with --mode direct; a running cluster reads CARTRIDGES_DIR.")
    if own_cartridges:
        mode = "direct"
    if mode is None:
        mode = "redis" if settings.kitbash_url or running(settings) else "direct"
    return ClusterAsker(settings) if mode == "redis" else DirectAsker(settings)


def _state(layer: Any) -> dict[str, Any]:
    reason = getattr(layer, "unavailable", None)
    return {"state": "unavailable" if reason else "ready", "reason": reason or "", "node": "this process"}
