"""Who may ask, and who may work: the token or a key in every request, and bodies of a sane size. ASGI.

Not here: what is done with a request (serve_app.py), making keys (keys.py).
"""

from __future__ import annotations

import hmac
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kitbash_ray.keys import Keyring

#: The largest body that is read, in bytes; a question with a long history is far below.
MAX_BODY = 1 << 20
#: Paths that need no token: they tell nothing about questions or knowledge.
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/health/startup", "/docs", "/openapi.json"})
#: Below this path, workers outside the cluster take a layer's work.
WORK_PATH = "/v1/work/"
#: Where a request's scope has the error budget of its key.
BUDGET = "kitbash.max_error"
#: The key's digest, when a request came with a key instead of the token.
BY_KEY = "kitbash.by_key"
#: The layer that the key of a worker may serve.
WORKER = "kitbash.worker"


class Gate:
    """Lets in who knows the token or a key, and bodies of a sane size."""

    def __init__(self, app: ASGIApp, token: str, keys: Keyring) -> None:
        self._app = app
        self._expected = token.encode()
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = length = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                given = value
            elif name == b"content-length":
                length = value
        if not self._known(given, scope):
            refused = refusal(
                401, "A token is needed: send `Authorization: Bearer <token>`; `kitbash status` tells where it is."
            )
            refused.headers["WWW-Authenticate"] = "Bearer"
            await refused(scope, receive, send)
        elif forbidden := _forbidden(scope):
            await refusal(403, forbidden, "forbidden")(scope, receive, send)
        elif length.isdigit() and int(length) > MAX_BODY:
            await refusal(413, f"The body is larger than {MAX_BODY >> 20} MiB.")(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _known(self, given: bytes, scope: Scope) -> bool:
        """Whether a request with this `Authorization` may come in; notes its key's budget in `scope`."""
        scheme, _, secret = given.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        if hmac.compare_digest(secret.strip(), self._expected):
            return True
        key = self._keys.find(secret.strip().decode("utf-8", "replace"))
        if key is None:
            return False
        scope[BUDGET], scope[BY_KEY], scope[WORKER] = key.max_error, key.sha256, key.worker
        return True


def _forbidden(scope: Scope) -> str | None:
    """Why a key may not do this: a worker's serves its layer and does nothing else, any other serves none."""
    layer, works = scope.get(WORKER), scope["path"].startswith(WORK_PATH)
    if layer:
        own = scope["path"].startswith(f"{WORK_PATH}{layer}/")
        return None if own else f"This is the key of a worker: it may serve the layer {layer}, and nothing else."
    if works and scope.get(BY_KEY):
        return "A key may ask questions; to serve a layer takes a worker's: `kitbash key add NAME --worker LAYER`."
    return None


def refusal(
    status: int, message: str, kind: str = "invalid_request", *, param: str | None = None, retry_after_s: int | None = None
) -> Response:
    """An error reply in the shape that OpenAI clients know."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse(error_body(message, kind, param=param), status_code=status, headers=headers)


def error_body(message: str, kind: str, *, param: str | None = None) -> dict[str, Any]:
    """What such a reply holds, and an event of a stream that cannot be a reply any more."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def overloaded() -> Response:
    """The reply to one question too many."""
    return refusal(429, "Too many questions at once; try again in a second.", "overloaded", retry_after_s=1)
