"""The values that travel: a query in, layer results and events on the way, an answer out.

All are frozen, and each that crosses a process encodes itself with `encode` and comes back
with `decode` (JSON, UTF-8). Nothing here does any work.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import TypeAdapter

Faction = Literal["general", "fiction", "experiment"]
Level = Literal["axiomatic", "empirical", "heuristic", "narrative"]
Outcome = Literal["answered", "abstained", "failed", "timeout"]
Status = Literal["answered", "abstained", "failed", "cancelled"]
EventKind = Literal[
    "query.received",
    "layer.started",
    "layer.delta",
    "layer.finished",
    "query.finished",
]

#: Layer names in the order of their numbers: 0 grain, 1 bitnet, 2 cartridge, (3 is free), 4 kobold.
LAYER_NUMBERS: dict[str, int] = {"grain": 0, "bitnet": 1, "cartridge": 2, "kobold": 4}

#: The longest question that is accepted, in characters; 8192 fills MiniLM's window several times.
MAX_QUERY_CHARS = 8192


def new_query_id() -> str:
    """`q_` and 16 hexadecimal digits; 64 random bits, so ids of a day's traffic do not meet."""
    return "q_" + secrets.token_hex(8)


def is_visible(text: str) -> bool:
    """Whether a question has anything to see in it."""
    return any(character.isprintable() and not character.isspace() for character in text)


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier message of the conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """One question with its context.

    `deadline_s` is the whole time it may take, in seconds from `asked_at` (Unix seconds);
    `max_error` the share of accepted answers that may be wrong, None for the deployment's;
    `cartridges` restricts the knowledge to those names, empty means all of `factions`.
    """

    text: str
    id: str = field(default_factory=new_query_id)
    history: tuple[Turn, ...] = ()
    factions: tuple[Faction, ...] = ("general",)
    cartridges: tuple[str, ...] = ()
    max_error: float | None = None
    deadline_s: float | None = None
    asked_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Source:
    """A fact that an answer rests on. `score` is a cosine, `reference` where to look it up."""

    cartridge: str
    fact_id: str
    text: str
    score: float
    reference: str | None = None
    section: str | None = None


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What one layer said. `confidence` is a calibrated probability, or None if there is none."""

    layer: str
    outcome: Outcome
    text: str | None = None
    score: float | None = None
    confidence: float | None = None
    sources: tuple[Source, ...] = ()
    reason: str | None = None
    latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One layer's line in the path of an answer."""

    layer: str
    outcome: Outcome
    confidence: float | None = None
    latency_ms: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the person who asked gets.

    When `status` is "abstained", `answer` is None and `candidate` is the best guess, if any,
    with its `sources`. `recorded` says whether Redis had the events when the answer was made.
    """

    query_id: str
    query: str
    status: Status
    answer: str | None = None
    layer: str | None = None
    confidence: float | None = None
    sources: tuple[Source, ...] = ()
    path: tuple[Step, ...] = ()
    latency_ms: float = 0.0
    reason: str | None = None
    candidate: str | None = None
    policy: str | None = None
    recorded: bool = False

    def with_recorded(self, recorded: bool) -> Answer:
        """The same answer; spelled out, because dataclasses.replace takes ten times as long."""
        return Answer(
            self.query_id, self.query, self.status, self.answer, self.layer, self.confidence, self.sources,
            self.path, self.latency_ms, self.reason, self.candidate, self.policy, recorded,
        )  # fmt: skip

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from kitbash_ray.render import answer_html

        return answer_html(self)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a query. `seq` counts from 0 within the query; `at` is Unix seconds."""

    query_id: str
    seq: int
    at: float
    kind: EventKind
    layer: str | None = None
    query: Query | None = None
    result: LayerResult | None = None
    text: str | None = None
    reason: str | None = None
    answer: Answer | None = None


class Layer(Protocol):
    """One way of answering. The cascade knows nothing else of a layer."""

    name: str

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        """Answer, abstain or fail; never raises for a question it cannot answer."""
        ...


@runtime_checkable
class StreamingLayer(Protocol):
    """A layer that also shows its answer while it makes it."""

    name: str

    def stream(self, query: Query, so_far: tuple[LayerResult, ...]) -> AsyncIterator[str | LayerResult]:
        """Pieces of text as they come, then the `LayerResult` as the last item."""
        ...


T = TypeVar("T")
_text = json.encoder.encode_basestring_ascii  # what json.dumps does with a string, without its set-up


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def encode(value: object, *, whole: bool = False) -> bytes:
    """A value of this module as JSON; `whole` writes absent members as null instead of leaving them out."""
    kind: Any = type(value)
    return _adapter(kind).dump_json(value, exclude_none=not whole)


def encode_event(event: Event, query: bytes | None, result: bytes | None, answer: bytes | None) -> bytes:
    """What `encode(event)` writes, from its members' JSON where that is at hand already.

    The recorder needs the members by themselves too; encoding each once halves its work.
    """
    line = f'{{"query_id":"{event.query_id}","seq":{event.seq},"at":{event.at!r},"kind":"{event.kind}"'
    if event.layer is not None:
        line += f',"layer":"{event.layer}"'
    if event.text is not None:
        line += f',"text":{_text(event.text)}'
    if event.reason is not None:
        line += f',"reason":{_text(event.reason)}'
    parts = [line.encode()]
    for name, member in ((b',"query":', query), (b',"result":', result), (b',"answer":', answer)):
        if member is not None:
            parts += (name, member)
    return b"".join((*parts, b"}"))


def decode(kind: type[T], data: bytes | str) -> T:
    """The inverse of `encode`. Raises pydantic.ValidationError on anything else."""
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
    value = adapter.validate_json(data)
    return value
