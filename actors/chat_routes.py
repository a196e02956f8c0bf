"""OpenAI's routes over the orchestrator: chat completions, completions, embeddings, models.

A plain question falls through the whole cascade; what only a model can do (tools, a JSON schema,
long instructions) goes to a model at once, and `kitbash/<layer>` asks that layer directly.
Not here: what the requests and replies look like (kitbash_ray/openai_types.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from actors.orchestrator import Orchestrator
from kitbash_ray.asgi import REFUSALS, EventStream, body_of, read_body
from kitbash_ray.errors import InvalidQuery
from kitbash_ray.gate import BUDGET, error_body, overloaded, refusal
from kitbash_ray.http_types import within_budget
from kitbash_ray.knowledge.grain_index import known_cartridges
from kitbash_ray.layers.generative import DECLINES
from kitbash_ray.openai_types import (
    EMBEDDING_MODEL,
    MODEL,
    ChatIn,
    CompletionIn,
    EmbeddingsIn,
    Sampled,
    embeddings,
    extension,
    finish_reason,
    headers,
    model_list,
    usage,
    words,
)
from kitbash_ray.types import Answer, Event, Query

#: A text this long does not begin with a refusal any more, in characters.
SHOWN_AFTER = 24


def add_chat(http: FastAPI, orchestrator: Orchestrator, most: int) -> None:
    """Chat completions and completions; at most `most` questions are worked on."""

    async def answered(request: Request, asked: ChatIn | CompletionIn, shape: Shape) -> Response:
        if orchestrator.in_flight >= most:
            return overloaded()
        if refused := _unknown_model(orchestrator, asked.model):
            return refused
        query = within_budget(asked.to_query(), request.scope.get(BUDGET))
        known_cartridges(query, orchestrator.cartridges())
        if asked.stream:
            stream = EventStream(_chunks(orchestrator, query, asked, shape))
            stream.headers["X-Kitbash-Query-Id"] = query.id
            return stream
        answer = await orchestrator.ask(query)
        if refused := _refused(query, answer):
            return refused
        return JSONResponse(shape.whole(asked.model, answer), headers=headers(answer))

    @http.router.post(
        "/v1/chat/completions", responses=REFUSALS, openapi_extra=body_of(ChatIn), summary="Ask, in the way of OpenAI's chat"
    )
    async def chat(request: Request) -> Response:
        asked = ChatIn.model_validate_json(await read_body(request, '{"messages": [{"role": "user", "content": "..."}]}'))
        return await answered(request, asked, ChatShape())

    @http.router.post(
        "/v1/completions",
        responses=REFUSALS,
        openapi_extra=body_of(CompletionIn),
        summary="Ask, in the way of OpenAI's completions",
    )
    async def completions(request: Request) -> Response:
        asked = CompletionIn.model_validate_json(await read_body(request, '{"prompt": "..."}'))
        return await answered(request, asked, TextShape())

    _add_embeddings(http, orchestrator)
    _add_models(http, orchestrator)


def _add_embeddings(http: FastAPI, orchestrator: Orchestrator) -> None:
    @http.router.post(
        "/v1/embeddings", responses=REFUSALS, openapi_extra=body_of(EmbeddingsIn), summary="Vectors of the embedding model"
    )
    async def embed(request: Request) -> Response:
        asked = EmbeddingsIn.model_validate_json(await read_body(request, '{"input": "..."}'))
        grain: Any = orchestrator.cascade.layers["grain"]
        texts = asked.texts()
        if asked.dimensions not in (None, grain.dimensions):
            raise InvalidQuery(f"The embedding model has {grain.dimensions} dimensions, and no other number.")
        vectors, tokens = await grain.embed(texts)
        return JSONResponse(embeddings(vectors, asked, tokens))


def _add_models(http: FastAPI, orchestrator: Orchestrator) -> None:
    created = int(time.time())

    @http.router.get("/v1/models", summary="The cascade and each of its layers, as models")
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": model_list(tuple(orchestrator.cascade.layers), created)})

    name = {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]}

    @http.router.get("/v1/models/{name:path}", openapi_extra=name, summary="One of them")
    async def model(request: Request) -> Response:
        listed = model_list(tuple(orchestrator.cascade.layers), created)
        found = next((item for item in listed if item["id"] == request.path_params["name"]), None)
        return JSONResponse(found) if found else _no_model(request.path_params["name"])


def _unknown_model(orchestrator: Orchestrator, name: str) -> Response | None:
    known = {MODEL, *(f"{MODEL}/{layer}" for layer in orchestrator.cascade.layers)}
    return None if name in known else _no_model(name)


def _no_model(name: str) -> Response:
    return refusal(
        404, f"There is no model {name[:80]!r}; /v1/models lists {MODEL}, {EMBEDDING_MODEL} and the others.", "not_found"
    )


def _refused(query: Query, answer: Answer) -> Response | None:
    """Whoever names a layer, or needs what only a model can do, is told when that cannot be had."""
    if not query.layers or answer.status == "answered":
        return None
    reasons = _reasons(answer) or "the layer is off"
    if answer.status == "abstained":
        return refusal(400, f"This cannot be answered: {reasons}.")
    return refusal(503 if answer.status == "failed" else 499, f"This was not answered: {reasons}.", answer.status)


def _reasons(answer: Answer) -> str:
    """Why each layer that was asked did not answer."""
    return "; ".join(f"{step.layer}: {step.reason}" for step in answer.path)


class Shape:
    """How an answer looks on one of the two routes."""

    kind: str
    chunk_kind: str
    prefix: str

    def whole(self, model: str, answer: Answer) -> dict[str, Any]:
        choice = {"index": 0, **self.said(answer), "finish_reason": finish_reason(answer), "logprobs": None}
        return {
            **self._head(self.kind, model, answer.query_id),
            "choices": [choice],
            "usage": usage(answer),
            "kitbash": extension(answer),
        }

    def chunk(self, model: str, query_id: str, delta: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
        choices = [] if delta is None else [{"index": 0, **delta, "finish_reason": finish, "logprobs": None}]
        return {**self._head(self.chunk_kind, model, query_id), "choices": choices}

    def said(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def first(self) -> dict[str, Any]:
        raise NotImplementedError

    def text(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def last(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def _head(self, kind: str, model: str, query_id: str) -> dict[str, Any]:
        return {
            "id": self.prefix + query_id.removeprefix("q_"),
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }


class ChatShape(Shape):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def said(self, answer: Answer) -> dict[str, Any]:
        calls = answer.generation.tool_calls if answer.generation else ()
        message: dict[str, Any] = {"role": "assistant", "content": words(answer), "refusal": None}
        if calls:
            message |= {"content": words(answer) or None, "tool_calls": list(calls)}
        return {"message": message}

    def first(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}}

    def text(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def last(self, answer: Answer) -> dict[str, Any]:
        calls = answer.generation.tool_calls if answer.generation else ()
        return {"delta": {"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]} if calls else {}}


class TextShape(Shape):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl-"

    def said(self, answer: Answer) -> dict[str, Any]:
        return {"text": words(answer)}

    def first(self) -> dict[str, Any]:
        return {"text": ""}

    def text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def last(self, answer: Answer) -> dict[str, Any]:
        return {"text": ""}


async def _chunks(orchestrator: Orchestrator, query: Query, asked: Sampled, shape: Shape) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events, token by token where a model writes it."""
    yield _line(shape.chunk(asked.model, query.id, shape.first()))
    shown = _Shown(orchestrator, query)
    async with aclosing(orchestrator.events(query)) as events:
        async for event in events:
            if text := shown.take(event):
                yield _line(shape.chunk(asked.model, query.id, shape.text(text)))
            if event.answer:
                for line in _ending(event.answer, shown, query, asked, shape):
                    yield line
    yield b"data: [DONE]\n\n"


def _ending(answer: Answer, shown: _Shown, query: Query, asked: Sampled, shape: Shape) -> list[bytes]:
    broken = query.layers and answer.status != "answered"
    if broken or (shown.text and answer.status in ("failed", "cancelled")):
        reasons = _reasons(answer) or answer.reason
        return [_line(error_body(f"This was not answered: {reasons}.", answer.status))]
    lines = []
    if not shown.text and (text := words(answer)):
        lines.append(_line(shape.chunk(asked.model, query.id, shape.text(text))))
    last = shape.chunk(asked.model, query.id, shape.last(answer), finish_reason(answer))
    lines.append(_line({**last, "kitbash": extension(answer)}))
    if asked.with_usage:
        lines.append(_line({**shape.chunk(asked.model, query.id, None), "usage": usage(answer)}))
    return lines


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


class _Shown:
    """What of a model's text can be shown before the cascade has decided.

    Only that of a layer whose answer is taken whatever it says: one that was asked directly, or
    layer 4 while nobody has calibrated it, once it is clear that it does not decline.
    """

    def __init__(self, orchestrator: Orchestrator, query: Query) -> None:
        self.text = ""
        self._held = ""
        self._direct = bool(query.layers)
        self._live = frozenset(query.layers) if query.layers else orchestrator.shown_live

    def take(self, event: Event) -> str:
        """What is new to show."""
        if event.kind == "layer.delta" and event.layer in self._live and event.text:
            self._held += event.text
            if self._direct or self.text or len(self._held) >= SHOWN_AFTER:
                return self._show()
        elif event.kind == "layer.finished" and event.layer in self._live:
            taken = event.result and event.result.outcome == "answered" and not DECLINES.match(self._held.replace("’", "'"))
            return self._show() if taken else ""
        return ""

    def _show(self) -> str:
        held, self._held = self._held, ""
        self.text += held
        return held
