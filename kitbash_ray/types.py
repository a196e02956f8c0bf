"""The values that travel: a query in, layer results and events on the way, an answer out.

All are frozen `msgspec.Struct`s, because a question makes some twenty of them and a lookup in
layer 0 takes microseconds; each crosses a process as JSON through `encode` and `decode`.
Nothing here does any work.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import msgspec
from msgspec import Struct, field

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
    "query.judged",
]

#: Layer names in the order of their numbers; 3 is free.
LAYER_NUMBERS: dict[str, int] = {"grain": 0, "bitnet": 1, "cartridge": 2, "kobold": 4, "cloud": 5}

#: The longest question that is accepted, in characters; 8192 fills MiniLM's window several times.
MAX_QUERY_CHARS = 8192

#: Numbers that the events of one attempt at a query have for themselves; a cascade tells some thousands at the most.
ATTEMPT_EVENTS = 1_000_000


def new_query_id() -> str:
    """`q_` and 16 hexadecimal digits; 64 random bits, so ids of a day's traffic do not meet."""
    return "q_" + secrets.token_hex(8)


def is_visible(text: str) -> bool:
    """Whether a question has anything to see in it."""
    return any(character.isprintable() and not character.isspace() for character in text)


class Turn(Struct, frozen=True, omit_defaults=True, gc=False):
    """One earlier message of the conversation."""

    role: Literal["user", "assistant"]
    text: str


class Message(Struct, frozen=True, omit_defaults=True, gc=False):
    """One message as a model gets it, in the fields of OpenAI's chat completions."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None


class Usage(Struct, frozen=True, gc=False):
    """What a generation read and wrote, in the engine's tokens."""

    prompt_tokens: int
    completion_tokens: int


class Chat(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a caller of a chat route wants of the engine itself, in OpenAI's terms; None: the layer's own choice.

    `messages` are all of the caller's, the last question included.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = None


class Generation(Struct, frozen=True, omit_defaults=True, gc=False):
    """What an engine told of one answer. `first_token_ms` counts from the start of the layer."""

    usage: Usage
    finish: Literal["stop", "length", "tool_calls"] = "stop"
    first_token_ms: float | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    cost_usd: float = 0.0


class Query(Struct, frozen=True, omit_defaults=True, gc=False):
    """One question with its context.

    `deadline_s` is the whole time it may take, in seconds from `asked_at` (Unix seconds);
    `max_error` the share of accepted answers that may be wrong, None for the deployment's;
    `cartridges` restricts the knowledge to those names, empty means all of `factions`.
    `layers` asks those directly, the first answer counts; empty means the whole cascade.
    `attempt` is the number of the claim under which a queued question is worked on, 0 for one that is not queued.
    """

    text: str
    id: str = field(default_factory=new_query_id)
    history: tuple[Turn, ...] = ()
    factions: tuple[Faction, ...] = ("general",)
    cartridges: tuple[str, ...] = ()
    max_error: float | None = None
    deadline_s: float | None = None
    asked_at: float = field(default_factory=time.time)
    layers: tuple[str, ...] = ()
    chat: Chat | None = None
    attempt: int = 0


class Source(Struct, frozen=True, gc=False):
    """A fact that an answer rests on. `score` is a cosine, `reference` where to look it up.

    `quote` is set when the answer quotes a passage: the words of `text` that answer most likely.
    """

    cartridge: str
    fact_id: str
    text: str
    score: float
    reference: str | None = None
    section: str | None = None
    quote: str | None = None


class LayerResult(Struct, frozen=True, omit_defaults=True, gc=False):
    """What one layer said. `confidence` is a calibrated probability, or None if there is none.

    `evidence` is what the confidence was made of, in the order of the layer's features.
    `agrees` is set by the cascade: how far (0 to 1) the answer means the same as each earlier one.
    """

    layer: str
    outcome: Outcome
    text: str | None = None
    score: float | None = None
    confidence: float | None = None
    sources: tuple[Source, ...] = ()
    reason: str | None = None
    latency_ms: float = 0.0
    evidence: tuple[float, ...] = ()
    agrees: tuple[tuple[str, float], ...] = ()
    generation: Generation | None = None


class Step(Struct, frozen=True, gc=False):
    """One layer's line in the path of an answer."""

    layer: str
    outcome: Outcome
    confidence: float | None = None
    latency_ms: float = 0.0
    reason: str | None = None


class Answer(Struct, frozen=True, gc=False):
    """What the person who asked gets.

    When `status` is "abstained", `answer` is None and `candidate` is the best guess, if any,
    with its `sources`. `recorded` says whether Redis had the events when the answer was made.
    `calibration` names the fit that the confidence is from. `degraded` are the layers that were
    silent of late and so are not asked, or only to see whether they are back.
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
    calibration: str | None = None
    generation: Generation | None = None
    degraded: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from kitbash_ray.render import answer_html

        return answer_html(self)


class Event(Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing that happened to a query. `seq` counts from 0 within the query; `at` is Unix seconds.

    `right` is somebody's judgement of the answer, in `query.judged`. `attempt` is the query's; its
    events count from `attempt * ATTEMPT_EVENTS`, and are refused once another attempt has begun.
    """

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
    right: bool | None = None
    attempt: int = 0


class Job(Struct, frozen=True, omit_defaults=True):
    """A query to answer later, as it stands in the queue. `idempotency` is the digest of the key that it came with."""

    query: Query
    callback_url: str | None = None
    idempotency: str | None = None


class DeadLetter(Struct, frozen=True):
    """A queued query that was given up; `at` is Unix seconds. `last_attempt` is the number that its next life counts from."""

    query_id: str
    reason: str
    attempts: int
    at: float
    job: Job
    last_attempt: int


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
_encoder = msgspec.json.Encoder()


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def encode(value: object) -> bytes:
    """A value of this module, or a list of them, as JSON."""
    return _encoder.encode(value)


def decode(kind: type[T], data: bytes | str) -> T:
    """The inverse of `encode`. Raises msgspec.ValidationError for another shape, msgspec.DecodeError for no JSON."""
    value: T = _decoder(cast(Any, kind)).decode(data)
    return value
