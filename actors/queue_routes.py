"""Routes of the queue: asking now for an answer later, and what became of queries that were given up.

Not here: the state of one query and calling it off, which are routes for all queries (serve_app.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from actors.orchestrator import Orchestrator
from actors.queue_worker import open_queue
from kitbash_ray.asgi import JSON, REFUSALS, body_of, read_body
from kitbash_ray.blackboard import QueryState
from kitbash_ray.config import Settings
from kitbash_ray.errors import StoreError
from kitbash_ray.gate import BUDGET, BY_KEY, refusal
from kitbash_ray.http_types import SubmitIn, within_budget
from kitbash_ray.knowledge.grain_index import known_cartridges
from kitbash_ray.queue import MAX_ATTEMPTS, Queue, digest
from kitbash_ray.types import Job, Query, encode

#: The longest wait for the end of a query, in seconds, and how many may wait in a replica; others are told at once.
MAX_WAIT_S, MAX_WAITING = 30.0, 32
#: Seconds between two looks of somebody who waits: at first, and at the most.
LOOK_S, LOOK_MOST_S = 0.05, 0.5
#: What an Idempotency-Key may be.
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}", re.ASCII)
LETTER_PATH = "/v1/dead-letters/{query_id}"
LETTER = {"parameters": [{"name": "query_id", "in": "path", "required": True, "schema": {"type": "string"}}]}
KEY_HEADER = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string"},
            "description": "The same key with the same body gets the same id, and is one query.",
        }
    ]
}


def add_queue(http: FastAPI, orchestrator: Orchestrator, settings: Settings) -> None:
    queue = open_queue(settings)
    accepted: dict[int | str, dict[str, Any]] = {202: {"description": "It will be answered; `Location` has its state."}}

    @http.router.post(
        "/v1/queries",
        status_code=202,
        responses=REFUSALS | accepted,
        openapi_extra=body_of(SubmitIn) | KEY_HEADER,
        summary="Ask, and get the answer later",
    )
    async def submit(request: Request) -> Response:
        asked = SubmitIn.model_validate_json(await read_body(request, '{"query": "..."}'))
        query = asked.to_query()
        known_cartridges(query, orchestrator.cartridges())
        url = asked.callback_url
        query = within_budget(query, request.scope.get(BUDGET))
        return await _submitted(queue, Job(query, str(url) if url else None, _idempotency(request)), asked)

    @http.router.get("/v1/queue", summary="How many queries wait, are worked on and were given up")
    async def counts(request: Request) -> Response:
        return Response(encode(await queue.counts()), media_type=JSON)

    _add_dead_letters(http, queue)


def _add_dead_letters(http: FastAPI, queue: Queue) -> None:
    @http.router.get("/v1/dead-letters", summary="The queries that were given up, the oldest first")
    async def letters(request: Request) -> Response:
        return Response(encode(await queue.dead_letters()), media_type=JSON)

    @http.router.post(f"{LETTER_PATH}/requeue", responses=REFUSALS, openapi_extra=LETTER, summary="Try one again")
    async def requeue(request: Request) -> Response:
        query_id = request.path_params["query_id"]
        if not await queue.requeue(query_id):
            return _no_letter(query_id)
        return _queued(query_id)

    @http.router.delete(LETTER_PATH, responses=REFUSALS, openapi_extra=LETTER, summary="Forget one")
    async def drop(request: Request) -> Response:
        query_id = request.path_params["query_id"]
        if not await queue.drop(query_id):
            return _no_letter(query_id)
        return JSONResponse({"query_id": query_id, "state": "dropped"})


async def _submitted(queue: Queue, job: Job, asked: SubmitIn) -> Response:
    told = await queue.submit(job, asked.model_dump_json())
    if told.outcome == "full":
        return refusal(429, "The queue is full; try again when some of it is answered.", "overloaded", retry_after_s=5)
    if told.outcome == "reused":
        return refusal(422, "This Idempotency-Key came with another body before; take a new key for a new question.")
    return _queued(told.query_id)


def _queued(query_id: str) -> Response:
    headers = {"Location": f"/v1/queries/{query_id}"}
    return JSONResponse({"query_id": query_id, "state": "queued"}, status_code=202, headers=headers)


def _idempotency(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise HTTPException(400, "An Idempotency-Key has 1 to 255 visible ASCII characters.")
    return digest(request.scope.get(BY_KEY, "the token"), key)


def _no_letter(query_id: str) -> Response:
    return refusal(404, f"There is no dead letter {query_id[:80]!r} (any more).", "not_found")


class Lookout:
    """Looks at queries for whoever waits for their end."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._waiting = 0

    async def state(self, query_id: str, wait: str) -> QueryState | None:
        """The state of a query, with `wait` (seconds, as they came) once it has ended or the time is over."""
        until, pause = time.monotonic() + _seconds(wait), LOOK_S
        while True:
            await self._orchestrator.recorder.flush()
            found = await self._orchestrator.blackboard.query(query_id)
            left = until - time.monotonic()
            if found is None or found.finished_at is not None or left <= 0 or self._waiting >= MAX_WAITING:
                return found
            self._waiting += 1  # a request that waits takes a place from those that ask
            try:
                await asyncio.sleep(min(pause, left))
            finally:
                self._waiting -= 1
            pause = min(2 * pause, LOOK_MOST_S)


def _seconds(wait: str) -> float:
    try:
        seconds = float(wait)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_S:
        raise HTTPException(400, f"`wait` is a number of seconds from 0 to {MAX_WAIT_S:.0f}.")
    return seconds


async def cancel(orchestrator: Orchestrator, state: QueryState) -> Response:
    """End a queued query, whoever works on it or nobody: what its worker says after that is refused."""
    found: QueryState | None = state
    for _ in range(MAX_ATTEMPTS + 1):  # again if a worker has claimed it meanwhile
        if found is None or found.finished_at is not None:
            break
        orchestrator.end(Query(found.text, id=found.query_id, attempt=found.attempt), "cancelled", "it was called off")
        await orchestrator.recorder.flush()
        found = await orchestrator.blackboard.query(found.query_id)
    if found is None or found.finished_at is None:
        raise StoreError("Redis does not take the end of the query.")
    if found.state != "cancelled":
        return refusal(409, f"The query is {found.state} already.", "conflict")
    await orchestrator.blackboard.call_off(state.query_id)
    return JSONResponse({"query_id": state.query_id, "state": "cancelled"})
