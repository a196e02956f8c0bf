"""Routes for workers outside the cluster: take work of a layer, answer it, say that one lives.

Who may come here is the gate's matter (gate.py), what is believed of a result that of work_types.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from kitbash_ray import __version__
from kitbash_ray.asgi import JSON, REFUSALS, body_of, inlined, read_body
from kitbash_ray.config import Settings
from kitbash_ray.direct import open_calibration
from kitbash_ray.errors import LayerError
from kitbash_ray.gate import WORK_PATH, overloaded, refusal
from kitbash_ray.http_types import ErrorOut
from kitbash_ray.redis_client import connect
from kitbash_ray.types import LayerResult, encode
from kitbash_ray.work import WorkStream
from kitbash_ray.work_types import SERVED, BeatIn, BeatOut, ClaimIn, Work, WorkerIn, read_result

T = TypeVar("T")

PATH = WORK_PATH + "{layer}"
LAYER = {"name": "layer", "in": "path", "required": True, "schema": {"type": "string", "enum": list(SERVED)}}
WORK_ID = {"name": "work_id", "in": "path", "required": True, "schema": {"type": "string"}}
WORKER = {"name": "worker", "in": "query", "required": True, "schema": {"type": "string"}}
RESULT = {"requestBody": {"required": True, "content": {JSON: {"schema": inlined(msgspec.json.schema(LayerResult))}}}}
REFUSED: dict[int | str, dict[str, Any]] = REFUSALS | {code: {"model": ErrorOut} for code in (403, 409, 503)}
#: Workers that wait for work at one replica; each holds a connection to Redis.
MOST_CLAIMS = 32


def add_work(http: FastAPI, settings: Settings) -> None:
    """The routes, over the work that waits in the Redis of `settings`."""
    redis, calibration = connect(settings.resolved_redis_url), open_calibration(settings).version
    streams = {layer: WorkStream(redis, layer) for layer in SERVED}
    _add_claim(http, streams, calibration)
    _add_result(http, streams)

    @http.router.post(
        PATH + "/heartbeat",
        responses=REFUSED,
        openapi_extra={"parameters": [LAYER], **_replies(BeatOut), **body_of(BeatIn)},
        summary="A worker lives; the reply says which work to give up",
    )
    async def heartbeat(request: Request) -> Response:
        stream = _stream(request, streams)
        beat = BeatIn.model_validate_json(await read_body(request, '{"worker": "...", ...}'))
        if refused := _differs(beat, calibration):
            return refused
        return Response(encode(BeatOut(await stream.beat(beat))), media_type=JSON)


def _add_claim(http: FastAPI, streams: Mapping[str, WorkStream], calibration: str) -> None:
    waiting: dict[tuple[str, str], asyncio.Task[Work | None]] = {}

    @http.router.post(
        PATH + "/claim",
        responses={**REFUSED, 204: {"description": "No work came meanwhile"}},
        openapi_extra={"parameters": [LAYER], **_replies(Work), **body_of(ClaimIn)},
        summary="Take work of a layer; waits for it",
    )
    async def claim(request: Request) -> Response:
        stream = _stream(request, streams)
        free = ClaimIn.model_validate_json(await read_body(request, '{"worker": "...", ...}'))
        if refused := _differs(free, calibration):
            return refused
        if len(waiting) >= MOST_CLAIMS:
            return overloaded()
        who = stream.layer, free.worker
        if before := waiting.get(who):
            before.cancel()  # a worker that asks anew has lost the connection that it asked over before
        task = asyncio.ensure_future(stream.claim(free.worker, free.wait_s, lambda: waiting.get(who) is task))
        waiting[who] = task
        try:
            work = await _while_connected(request, task)
        finally:
            if waiting.get(who) is task:
                del waiting[who]
        return Response(encode(work), media_type=JSON) if work else Response(status_code=204)


def _add_result(http: FastAPI, streams: Mapping[str, WorkStream]) -> None:
    @http.router.post(
        PATH + "/{work_id}/result",
        responses=REFUSED,
        openapi_extra={"parameters": [LAYER, WORK_ID, WORKER], **RESULT},
        summary="The result of work that one has claimed",
    )
    async def result(request: Request) -> Response:
        stream, fault = _stream(request, streams), None
        worker, work_id = request.query_params.get("worker", ""), request.path_params["work_id"]
        body = await read_body(request, '{"layer": "...", "outcome": "answered", ...}')
        try:
            said = read_result(stream.layer, body)
        except LayerError as error:  # whoever asked need not wait for a worker that cannot say it
            fault = str(error)
            said = LayerResult(stream.layer, "failed", reason=f"its worker {worker[:64]} is broken: {fault}")
        if not await stream.settle(worker, work_id, said):
            gone = "This work is not yours any more: it was called off, or another worker has it."
            return refusal(409, gone, "conflict")
        return refusal(400, fault) if fault else Response(b"{}", media_type=JSON)


def _stream(request: Request, streams: Mapping[str, WorkStream]) -> WorkStream:
    found = streams.get(request.path_params["layer"])
    if found is None:
        raise HTTPException(400, f"Workers serve {', '.join(SERVED[:-1])} and {SERVED[-1]}, and no other layer.")
    return found


def _differs(worker: WorkerIn, calibration: str) -> Response | None:
    """A refusal of a worker whose confidences would mean something else than ours."""
    if worker.version != __version__:
        reason = f"The worker is Kitbash {worker.version} and the front door {__version__}: install the same on both."
    elif worker.calibration != calibration:
        reason = (
            f"The worker goes by the calibration {worker.calibration} and the front door by {calibration}: "
            "copy the front door's calibration.json, and name it in KITBASH_CALIBRATION."
        )
    else:
        return None
    return refusal(409, reason, "conflict")


def _replies(kind: type) -> dict[str, Any]:
    return {"responses": {"200": {"content": {JSON: {"schema": inlined(msgspec.json.schema(kind))}}}}}


async def _while_connected(request: Request, task: asyncio.Task[T]) -> T | None:
    """What `task` gives; it is cancelled when the client goes, so that no work is handed to nobody."""
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() and not task.cancelled() else None
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
