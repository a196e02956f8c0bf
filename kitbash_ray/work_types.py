"""What travels between the front door and a worker outside the cluster, and what of it is believed.

A worker is a program of somebody else: what it says is checked here before it counts. Needs
neither Ray nor Redis, because the worker's machine has neither. Not here: where work waits (work.py).
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from kitbash_ray.errors import LayerError
from kitbash_ray.types import LayerResult, Query, decode

#: The layers that can be served from outside; layer 0 is a lookup in the front door, layer 5 somebody else's already.
ServedLayer = Literal["bitnet", "cartridge", "kobold"]
SERVED: tuple[str, ...] = get_args(ServedLayer)
#: Seconds that the front door keeps a worker waiting for work; most proxies wait 30 at least.
CLAIM_WAIT_S = 25.0
#: Work that one worker has at once, at most.
MOST_AT_ONCE = 16
#: Limits of a result: its bytes, the characters of its text and reason, its sources, its numbers of evidence.
MAX_RESULT, MAX_TEXT, MAX_REASON, MAX_SOURCES, MAX_EVIDENCE = 256 << 10, 64 << 10, 1000, 64, 64

WorkId = Annotated[str, StringConstraints(pattern=r"^\d{1,15}-\d{1,15}$")]


class WorkerIn(BaseModel):
    """Who a worker is. `calibration` names the fit that its confidences are from."""

    model_config = ConfigDict(extra="forbid", strict=True)

    worker: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = Field(
        description="Its name, one for each worker of a layer."
    )
    version: Annotated[str, StringConstraints(max_length=40)] = Field(description="Its version of Kitbash.")
    calibration: Annotated[str, StringConstraints(max_length=80)] = Field(description="The calibration it goes by.")


class ClaimIn(WorkerIn):
    """A worker that is free."""

    wait_s: float = Field(CLAIM_WAIT_S, ge=0, le=CLAIM_WAIT_S, description="Seconds to wait for work.")


class BeatIn(WorkerIn):
    """A worker that lives, or one that ends (`leaving`)."""

    state: Literal["ready", "leaving"] = "ready"
    working: tuple[WorkId, ...] = Field((), max_length=MOST_AT_ONCE, description="The work it has at hand.")
    model: Annotated[str, StringConstraints(max_length=200)] = ""
    node: Annotated[str, StringConstraints(max_length=200)] = ""
    pid: int = Field(0, ge=0)
    since: float = Field(0.0, ge=0, description="When it began, in Unix seconds.")


class BeatOut(Struct, frozen=True):
    """Work that is a worker's no more: it was called off, or another one has it."""

    give_up: tuple[str, ...] = ()


class Work(Struct, frozen=True):
    """One question for one layer. After `seconds` nobody waits for the answer any more."""

    id: str
    query: Query
    so_far: tuple[LayerResult, ...]
    seconds: float


def read_result(layer: str, body: bytes) -> LayerResult:
    """A worker's result, of `layer` and of a sane size. Raises LayerError with one sentence."""
    if len(body) > MAX_RESULT:
        raise LayerError(f"The result has {len(body)} bytes; {MAX_RESULT} are the most.")
    try:
        result = decode(LayerResult, body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LayerError(f"This is no result of a layer: {error}.") from error
    if fault := _fault(layer, result):
        raise LayerError(f"The result cannot be used: {fault}.")
    # The front door says itself how long it took and who agrees; nobody pays for a worker.
    generation = result.generation and replace(result.generation, cost_usd=0.0)
    return replace(result, agrees=(), latency_ms=0.0, generation=generation)


def _fault(layer: str, result: LayerResult) -> str | None:
    """What is wrong with it."""
    checks = {
        f"it is of the layer {result.layer[:40]!r}, not of {layer!r}": result.layer != layer,
        "a worker cannot say that it took too long": result.outcome == "timeout",
        "it has no text": result.outcome == "answered" and result.text is None,
        "its confidence is not between 0 and 1": result.confidence is not None and not 0 <= result.confidence <= 1,
        f"its text has more than {MAX_TEXT} characters": len(result.text or "") > MAX_TEXT,
        f"its reason has more than {MAX_REASON} characters": len(result.reason or "") > MAX_REASON,
        f"it has more than {MAX_SOURCES} sources": len(result.sources) > MAX_SOURCES,
        f"it has more than {MAX_EVIDENCE} numbers of evidence": len(result.evidence) > MAX_EVIDENCE,
    }
    return next((fault for fault, wrong in checks.items() if wrong), None)
