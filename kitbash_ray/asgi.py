"""What the routes share: bodies, streams of events, one sentence for whatever goes wrong. ASGI; knows no route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from kitbash_ray.errors import InvalidQuery, StoreError
from kitbash_ray.gate import MAX_BODY, refusal
from kitbash_ray.http_types import ErrorOut

JSON = "application/json"
REFUSALS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorOut} for code in (400, 401, 413, 429)}


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request and reads the body itself.

    FastAPI's reading of parameters costs more than a layer-0 lookup; the description of the
    API is still made from the declared models.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            return await self.endpoint(request)  # type: ignore[no-any-return]

        return handle


async def read_body(request: Request, example: str) -> bytes:
    """The body. Raises HTTPException when it is empty or too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"The body is larger than {MAX_BODY >> 20} MiB.")
    if not body:
        raise HTTPException(400, f"The body is empty; send {example}.")
    return bytes(body)


class EventStream(StreamingResponse):
    """Server-sent events whose source is closed with the connection, not when it is garbage-collected."""

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._lines = lines
        super().__init__(self._lines, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A task of its own: this one may be cancelled, and cancelled again at each await.
            closing = asyncio.ensure_future(self._lines.aclose())
            with suppress(asyncio.CancelledError):
                await asyncio.shield(closing)


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The description of a request whose body is a `model`."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": inlined(model.model_json_schema())}}}}


def inlined(schema: Any, definitions: Any = None) -> Any:
    """A JSON schema without references, which would lead nowhere inside the OpenAPI document."""
    if isinstance(schema, list):
        return [inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    if "$ref" in schema:
        return inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: inlined(value, definitions) for key, value in schema.items() if key != "$defs"}


def add_errors(http: FastAPI) -> None:
    """Whatever goes wrong becomes one sentence."""

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, ValidationError | RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return refusal(400, f"{where}: {first['msg']}." if where else f"{first['msg']}.")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = {
            404: f"There is nothing at {request.url.path[:80]}; /docs lists the routes.",
            405: "This route does not know that method.",
        }
        return refusal(error.status_code, text.get(error.status_code, str(error.detail)))

    async def bad_query(request: Request, error: Exception) -> Response:
        return refusal(400, str(error))

    async def no_store(request: Request, error: Exception) -> Response:
        return refusal(503, f"{error} Try again when it is back.", "unavailable", retry_after_s=2)

    http.add_exception_handler(ValidationError, invalid)
    http.add_exception_handler(RequestValidationError, invalid)
    http.add_exception_handler(HTTPException, refused)
    http.add_exception_handler(InvalidQuery, bad_query)
    http.add_exception_handler(StoreError, no_store)
