"""The front door: HTTP routes over one Orchestrator per replica, as a Ray Serve application.

    serve run serve_app:app        in a cluster of its own
    kitbash up                     the same with Redis, resources and HAProxy around it

Every route but the health checks and the API's description wants the token as
`Authorization: Bearer ...`. A refusal is JSON with one sentence, never a stack trace.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from starlette.types import ASGIApp

from actors.adapter_routes import add_adapters
from actors.chat_routes import add_chat
from actors.frontdoor import open_orchestrator
from actors.orchestrator import Orchestrator
from actors.queue_routes import Lookout, add_queue, cancel
from actors.work_routes import add_work
from kitbash_ray import __version__
from kitbash_ray.asgi import JSON, REFUSALS, EventStream, PlainRoute, add_errors, body_of, inlined, read_body
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.errors import StoreError
from kitbash_ray.gate import BUDGET, Gate, overloaded, refusal
from kitbash_ray.http_types import FeedbackIn, QueryIn, within_budget
from kitbash_ray.keys import Keyring, keys_file
from kitbash_ray.knowledge.grain_index import known_cartridges
from kitbash_ray.token import ensure_token
from kitbash_ray.types import LAYER_NUMBERS, Answer, Event, Query, encode

APP_NAME = "kitbash"
#: What a replica takes of its device's resource, where it is pinned.
REPLICA_SHARE = 0.001
QUERY_ID = re.compile(r"q_[0-9a-f]{16}", re.ASCII)
QUERY_PATH = {"parameters": [{"name": "query_id", "in": "path", "required": True, "schema": {"type": "string"}}]}
#: A place in the feed: the id of a Redis stream entry, or `$` for now.
FEED_POSITION = re.compile(r"\$|\d{1,15}(-\d{1,15})?", re.ASCII)


def build_http(orchestrator: Orchestrator, settings: Settings, token: str) -> ASGIApp:
    """The routes over `orchestrator` as an ASGI application."""
    http = FastAPI(title="Kitbash", version=__version__, redoc_url=None, redirect_slashes=False, description=__doc__)
    http.router.route_class = PlainRoute
    add_questions(http, orchestrator, settings.kitbash_max_in_flight)
    add_chat(http, orchestrator, settings.kitbash_max_in_flight)
    add_queries(http, orchestrator)
    add_queue(http, orchestrator, settings)
    add_feed(http, orchestrator)
    add_adapters(http, orchestrator)
    add_work(http, settings)
    add_health(http, orchestrator)
    add_errors(http)
    return Gate(http, token, Keyring(keys_file(settings)))


def add_questions(http: FastAPI, orchestrator: Orchestrator, most: int) -> None:
    """Asking, all at once or as a stream; at most `most` questions are worked on."""
    body = body_of(QueryIn)
    answer = {"responses": {"200": {"content": {JSON: {"schema": inlined(msgspec.json.schema(Answer))}}}}}

    async def admitted(request: Request) -> Query | Response:
        if orchestrator.in_flight >= most:
            return overloaded()
        query = QueryIn.model_validate_json(await read_body(request, '{"query": "..."}')).to_query()
        known_cartridges(query, orchestrator.cartridges())
        return within_budget(query, request.scope.get(BUDGET))

    @http.router.post("/v1/query", responses=REFUSALS, openapi_extra=body | answer, summary="Ask, and get the answer")
    async def query(request: Request) -> Response:
        asked = await admitted(request)
        if isinstance(asked, Response):
            return asked
        return Response(encode(await orchestrator.ask(asked)), media_type=JSON)

    @http.router.post(
        "/v1/query/stream", responses=REFUSALS, openapi_extra=body, summary="Ask, and see the events as they happen (SSE)"
    )
    async def stream(request: Request) -> Response:
        asked = await admitted(request)
        return asked if isinstance(asked, Response) else EventStream(event_lines(orchestrator, asked))


def add_queries(http: FastAPI, orchestrator: Orchestrator) -> None:
    """Looking at a query, calling it off, judging its answer."""
    _add_calls(http, orchestrator)
    lookout = Lookout(orchestrator)

    @http.router.get(
        "/v1/queries/{query_id}", openapi_extra=QUERY_PATH, summary="The state of a query; `wait`: seconds to wait for its end"
    )
    async def state(request: Request) -> Response:
        found = await lookout.state(asked_id(request), request.query_params.get("wait", "0"))
        return Response(encode(found), media_type=JSON) if found else unknown(request)

    @http.router.get("/v1/queries/{query_id}/events", openapi_extra=QUERY_PATH, summary="The events of a query, in order")
    async def events(request: Request) -> Response:
        await orchestrator.recorder.flush()
        found = await orchestrator.blackboard.events(asked_id(request))
        return Response(b"[" + b",".join(map(encode, found)) + b"]", media_type=JSON) if found else unknown(request)


def add_feed(http: FastAPI, orchestrator: Orchestrator) -> None:
    """The events of all queries, and the layers."""

    @http.router.get("/v1/feed", summary="Every event of all queries as it happens (SSE); `follow=false`: those that are there")
    async def feed(request: Request) -> Response:
        after = request.headers.get("last-event-id") or request.query_params.get("after") or "$"
        if not FEED_POSITION.fullmatch(after):
            return refusal(400, "`after` is the id of an event of the feed, `0` or `$`.")
        follow = request.query_params.get("follow", "true")
        if follow not in ("true", "false"):
            return refusal(400, "`follow` is true or false.")
        await orchestrator.recorder.flush()
        return EventStream(feed_lines(orchestrator, after, follow == "true"))

    @http.router.get("/v1/layers", summary="The layers: where they run and how they are")
    async def layers(request: Request) -> Response:
        return JSONResponse(layer_list(orchestrator, await orchestrator.blackboard.actors()))

    @http.router.get("/v1/replicas", summary="The front door's replicas: where they run and how they are")
    async def replicas(request: Request) -> Response:
        return JSONResponse(replica_list(await orchestrator.blackboard.actors()))


def _add_calls(http: FastAPI, orchestrator: Orchestrator) -> None:
    @http.router.delete("/v1/queries/{query_id}", responses=REFUSALS, openapi_extra=QUERY_PATH, summary="Cancel a query")
    async def call_off(request: Request) -> Response:
        asked = asked_id(request)
        if orchestrator.call_off(asked):
            return JSONResponse({"query_id": asked, "state": "cancelled"})
        await orchestrator.recorder.flush()
        found = await orchestrator.blackboard.query(asked)
        if found is None:
            return unknown(request)
        if found.attempt and found.finished_at is None:
            return await cancel(orchestrator, found)
        if found.state != "running":
            return refusal(409, f"The query is {found.state} already.", "conflict")
        await orchestrator.blackboard.call_off(asked)  # another replica works on it
        return JSONResponse({"query_id": asked, "state": "cancelling"}, status_code=202)

    @http.router.post(
        "/v1/queries/{query_id}/feedback",
        responses=REFUSALS,
        openapi_extra=QUERY_PATH | body_of(FeedbackIn),
        summary="Say whether an answer was right",
    )
    async def feedback(request: Request) -> Response:
        given = FeedbackIn.model_validate_json(await read_body(request, '{"right": true}'))
        if not await orchestrator.judge(asked_id(request), given.right):
            return refusal(404, f"There is no answer to {request.path_params['query_id'][:80]!r} (any more).", "not_found")
        return JSONResponse({"status": "ok"})


def add_health(http: FastAPI, orchestrator: Orchestrator) -> None:
    @http.router.get("/health/live", summary="The process lives")
    async def live(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @http.router.get("/health/startup", summary="The layers are connected")
    async def startup(request: Request) -> Response:
        return JSONResponse({"status": "ok"})  # a replica serves only after it has connected them

    @http.router.get("/health/ready", summary="Questions are answered and recorded")
    async def ready(request: Request) -> Response:
        trouble: object = orchestrator.recorder.trouble  # also a Redis that lets itself be read, and nothing more
        try:
            if trouble is None:
                await orchestrator.blackboard.ping()
        except StoreError as error:
            trouble = error
        if trouble:  # answers go on without Redis; whoever balances load should know
            return JSONResponse({"status": "degraded", "reason": str(trouble)})
        return JSONResponse({"status": "ok"})


def unknown(request: Request) -> Response:
    return refusal(404, f"There is no query {request.path_params['query_id'][:80]!r} (any more).", "not_found")


def asked_id(request: Request) -> str:
    """The query id in the path; something else could name another key of Redis."""
    found = str(request.path_params["query_id"])
    return found if QUERY_ID.fullmatch(found) else "q_unknown"


async def event_lines(orchestrator: Orchestrator, query: Query) -> AsyncGenerator[bytes, None]:
    async with aclosing(orchestrator.events(query)) as events:
        async for event in events:
            yield _sse_event(event, str(event.seq))


async def feed_lines(orchestrator: Orchestrator, after: str, follow: bool) -> AsyncGenerator[bytes, None]:
    try:
        yield b": the feed\n"
        if after == "$":  # said by its id: whoever loses the connection before anything happens can go on from there
            after = await orchestrator.feed.newest()
            yield b"id: %b\n\n" % after.encode()
        source: AsyncGenerator[tuple[str, Event] | None, None]
        source = orchestrator.feed.follow(after) if follow else orchestrator.feed.so_far(after)
        async with aclosing(source) as entries:
            async for entry in entries:
                # A comment keeps proxies awake and makes a vanished client noticeable.
                yield _sse_event(entry[1], entry[0]) if entry else b": nothing new\n\n"
    except StoreError as error:
        yield b"event: error\ndata: " + json.dumps({"message": str(error)}).encode() + b"\n\n"


def _sse_event(event: Event, event_id: str) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), event.kind.encode(), encode(event))


def layer_list(orchestrator: Orchestrator, actors: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """Each layer of the cascade with its actor's heartbeat; a layer without one is `gone`."""
    listed = []
    for name, number in LAYER_NUMBERS.items():
        if name == "cloud":  # no actor of ours: it is there if it is configured
            if name in orchestrator.cascade.layers:
                listed.append({"layer": name, "number": number, "state": "ready"})
            continue
        beats = [{"name": actor, **beat} for actor, beat in sorted(actors.items()) if beat["layer"] == name]
        beats.sort(key=lambda beat: (beat["state"] != "ready", "worker" in beat))  # actors before workers elsewhere
        state: dict[str, Any] = beats[0] if beats else {"state": "gone", "reason": "no heartbeat"}
        if breaker := orchestrator.cascade.breakers.get(name):
            state = {**state, "breaker": breaker.state} | ({"degraded": breaker.reason} if breaker.reason else {})
        if len(beats) > 1:
            state = {**state, "replicas": beats}
        if name not in orchestrator.cascade.layers:
            state = {"state": "off", "reason": f"{name.upper()}_AUTO_SPAWN is false, and no worker has come"}
        listed.append({**state, "layer": name, "number": number})
    return listed


def replica_list(actors: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """The heartbeats of the front door's replicas."""
    beats = ((name.rpartition(":")[2], beat) for name, beat in sorted(actors.items()) if beat.get("layer") == "front_door")
    return [{"replica": name, **beat} for name, beat in beats]


@serve.ingress()
class FrontDoor:
    """One replica: an orchestrator and the routes over it."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Serve awaits it
        self._settings = settings
        self._orchestrator = await open_orchestrator(settings)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_http(self._orchestrator, self._settings, ensure_token(self._settings))

    async def check_health(self) -> None:
        await asyncio.sleep(0)


def build(settings: Settings, resource: str | None = None) -> serve.Application:
    """The application with these settings, on the device that has `resource`: layer 0 maps its index there."""
    deployment = serve.deployment(
        name="FrontDoor",
        num_replicas=settings.kitbash_replicas,
        max_ongoing_requests=settings.kitbash_max_in_flight + 64,  # the gate refuses before Serve queues
        ray_actor_options={"num_cpus": 0, "resources": {resource: REPLICA_SHARE} if resource else {}},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
    )(FrontDoor)
    return deployment.bind(settings)


app = build(load_settings())
