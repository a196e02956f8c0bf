"""Routes for the LoRA adapters of layers 1 and 4. A key may ask; only the token may swap."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from actors.orchestrator import Orchestrator
from actors.remote import models
from kitbash_ray.asgi import REFUSALS, body_of, read_body
from kitbash_ray.errors import LayerError, ModelError
from kitbash_ray.gate import BY_KEY, refusal
from kitbash_ray.http_types import AdapterIn

PATH = "/v1/layers/{layer}/adapter"
LAYER_PATH = {"parameters": [{"name": "layer", "in": "path", "required": True, "schema": {"type": "string"}}]}


def add_adapters(http: FastAPI, orchestrator: Orchestrator) -> None:
    @http.router.get(PATH, responses=REFUSALS, openapi_extra=LAYER_PATH, summary="The adapters of a layer's model")
    async def look(request: Request) -> Response:
        return await _answered(request, orchestrator, "adapters")

    @http.router.put(PATH, responses=REFUSALS, openapi_extra=LAYER_PATH | body_of(AdapterIn), summary="Swap a layer's adapter")
    async def use(request: Request) -> Response:
        wanted = AdapterIn.model_validate_json(await read_body(request, '{"name": "house-style"}'))
        return await _answered(request, orchestrator, "use_adapter", wanted.name)

    @http.router.post(f"{PATH}/rollback", responses=REFUSALS, openapi_extra=LAYER_PATH, summary="Go back to the one before")
    async def roll_back(request: Request) -> Response:
        return await _answered(request, orchestrator, "roll_back_adapter")


async def _answered(request: Request, orchestrator: Orchestrator, what: str, *arguments: Any) -> Response:
    if request.scope.get(BY_KEY) and what != "adapters":
        return refusal(403, "A key may ask questions; to swap an adapter takes the token.", "forbidden")
    holders = models(orchestrator.cascade.layers.get(request.path_params["layer"]))
    if not holders:
        return refusal(404, f"There is no layer {request.path_params['layer'][:40]!r} with adapters.", "not_found")
    try:
        told = await asyncio.gather(*(getattr(each, what)(*arguments) for each in holders))
        return JSONResponse(told[0])
    except ModelError as error:
        return refusal(400, str(error))
    except LayerError as error:
        return refusal(409, str(error), "conflict")
