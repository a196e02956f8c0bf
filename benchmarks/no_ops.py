"""Two deployments that answer at once, for front_door.py: `python -m benchmarks.no_ops ADDRESS`.

They have the Serve options of the front door and stand beside it in the same cluster.
"""

import os
import sys

from kitbash_ray.config import Settings, load_settings, ray_auth

os.environ["RAY_AUTH_MODE"] = ray_auth()  # before Ray reads it at its import

import ray
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel
from ray import serve
from starlette.types import ASGIApp

from actors.deploy import NAMESPACE
from kitbash_ray.asgi import PlainRoute, read_body
from kitbash_ray.gate import Gate
from kitbash_ray.http_types import QueryIn
from kitbash_ray.keys import Keyring, keys_file
from kitbash_ray.token import find_token
from kitbash_ray.types import Answer, encode

http = FastAPI()


class Ready(BaseModel):
    query: str
    status: str
    answer: str


@serve.ingress(http)
class Noop:
    """As Serve's documentation writes an application: FastAPI with a pydantic body and reply."""

    @http.post("/v1/query")
    async def query(self, asked: QueryIn) -> Ready:
        return Ready(query=asked.query, status="answered", answer="ready")


@serve.ingress()
class Bare:
    """The front door's own route, gate and models, with no cascade behind them."""

    def __init__(self, settings: Settings) -> None:
        self._token, self._keys = find_token(settings), Keyring(keys_file(settings))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        bare = FastAPI()
        bare.router.route_class = PlainRoute

        @bare.router.post("/v1/query")
        async def query(request: Request) -> Response:
            asked = QueryIn.model_validate_json(await read_body(request, '{"query": "..."}')).to_query()
            return Response(encode(Answer(asked.id, asked.text, "answered", "ready")), media_type="application/json")

        return Gate(bare, self._token, self._keys)


def deployment(kind: type, settings: Settings) -> serve.Deployment:
    most = settings.kitbash_max_in_flight + 64
    return serve.deployment(name=kind.__name__, num_replicas=1, max_ongoing_requests=most, ray_actor_options={"num_cpus": 0})(
        kind
    )


def main() -> None:
    settings = load_settings()
    ray.init(
        address=sys.argv[1], namespace=NAMESPACE, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}}
    )
    serve.run(deployment(Noop, settings).bind(), name="noop", route_prefix="/noop")
    serve.run(deployment(Bare, settings).bind(settings), name="bare", route_prefix="/bare")


if __name__ == "__main__":
    main()
