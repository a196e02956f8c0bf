"""A small KoboldCpp over a real GGUF and real sockets: the routes, fields and manners of version 1.102.

What it keeps of the real one: one generation at a time, 503 while it is busy, `finish_reason` "length"
at a stop sequence, abort by genkey that ends the stream in the ordinary way, texts that are cut at a NUL,
and a client that went away is noticed only after a while. What it leaves out: the queue of
`--multiuser`, samplers but the common ones, the 0.35 s that the real stream waits before its first event.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from llama_cpp import LlamaGrammar
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kitbash_ray.engines.llama_cpp import load_gguf

BUSY = {"detail": {"msg": "Server is busy; please try again later.", "type": "service_unavailable"}}
UNAUTHORIZED = {"detail": {"error": "Unauthorized", "msg": "Authentication key is missing or invalid.", "type": "unauthorized"}}
BAD_INPUT = {"detail": {"msg": "Error parsing input.", "type": "bad_input"}}
NOWHERE = "Error: KoboldCpp HTTP Server is running, but this endpoint does not exist. Please check the URL."
#: The real one looks every half second whether the client of a stream is still there.
DISCONNECT_S = 0.5
#: Stop reasons by the real one's numbers.
INVALID, OUT_OF_TOKENS, EOS, STOPPER = -1, 0, 1, 2


@dataclass(frozen=True)
class Ended:
    """A generation that is over. `by` is "end", "abort" or "disconnect", `at` of the monotonic clock."""

    genkey: str
    tokens: int
    by: str
    at: float


class Generation:
    """One generation, run in a thread; its pieces can be awaited in the event loop that made it."""

    def __init__(self, server: KoboldCppServer, asked: dict[str, Any]) -> None:
        self.genkey = str(asked.get("genkey", ""))
        self.text, self.tokens, self.stop_reason = "", 0, INVALID
        self.ended_by = "end"
        self._server, self._asked = server, asked
        self._aborted = threading.Event()
        self._loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()

    @property
    def finish_reason(self) -> str:
        return "stop" if self.stop_reason == EOS else "length"

    @property
    def trimmed(self) -> str:
        stops = [stop for stop in self._asked.get("stop_sequence", []) if stop]
        if not self._asked.get("trim_stop", True):
            return self.text
        return self.text[: min((at for at in map(self.text.find, stops) if at >= 0), default=len(self.text))]

    def abort(self, by: str) -> None:
        if not self._aborted.is_set():
            self.ended_by = by
            self._aborted.set()

    def run(self) -> None:
        """The blocking generation. Leaves the server free."""
        try:
            self._generate()
        finally:
            self._server.busy.release()
            self._server.ended.put(Ended(self.genkey, self.tokens, self.ended_by, time.monotonic()))
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, None)

    def _generate(self) -> None:
        llama, asked = self._server.llama, self._asked
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        prompt = asked["prompt"].partition("\0")[0]  # a string of C
        most = int(asked.get("max_length", 100))
        room = int(asked.get("max_context_length", self._server.window)) - most
        made: list[int] = []
        llama.reset()
        llama.set_seed(int(asked.get("sampler_seed", -1)) & 0xFFFFFFFF)
        for token in llama.generate(self._server.ids(prompt)[-room:], grammar=_grammar(asked), **_samplers(asked)):
            if self._aborted.is_set():
                return
            if token == llama.token_eos():
                self.stop_reason = EOS
                return
            piece = decoder.decode(llama.detokenize([token], prev_tokens=made))
            made.append(token)
            self.tokens = len(made)
            self.text += piece
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
            if any(stop in self.text for stop in asked.get("stop_sequence", []) if stop):
                self.stop_reason = STOPPER
                return
            if self.tokens >= most:
                self.stop_reason = OUT_OF_TOKENS
                return
            if self._server.pause_after == self.tokens:
                self._aborted.wait(30)


class KoboldCppServer:
    """The server. Set `pause_after` to let generations hang after that many tokens until they are aborted."""

    def __init__(self, gguf: Path, *, window: int, key: str = "", streams: bool = True) -> None:
        self.llama = load_gguf(gguf, n_ctx=window, n_threads=1, n_threads_batch=1)
        self.model, self.window, self.key = gguf.stem, window, key
        self.pause_after: int | None = None
        self.busy = threading.Lock()
        #: Every generation that is over, in order.
        self.ended: queue.Queue[Ended] = queue.Queue()
        self.current: Generation | None = None
        self.asked: list[dict[str, Any]] = []
        self._counting = threading.Lock()
        app = Starlette(routes=self._routes(streams), exception_handlers={404: _nowhere, 405: _nowhere})
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self.url = ""

    def start(self) -> None:
        listening = self._uvicorn.config.bind_socket()
        listening.listen(64)  # whoever connects before the thread serves waits
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._uvicorn.run, args=([listening],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self.current:
            self.current.abort("end")
        self._uvicorn.should_exit = True
        self._thread.join(10)

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        with self._counting:
            return list(self.llama.tokenize(text.encode(), add_bos=special, special=True))

    def _routes(self, streams: bool) -> list[Route]:
        get: dict[str, Any] = {
            "/api/v1/model": lambda: {"result": f"koboldcpp/{self.model}"},
            "/api/v1/info/version": lambda: {"result": "1.2.5"},
            "/api/v1/config/max_length": lambda: {"value": 1024},
            "/api/v1/config/max_context_length": lambda: {"value": self.window},
            "/api/extra/true_max_context_length": lambda: {"value": self.window},
            "/api/extra/version": lambda: {"result": "KoboldCpp", "version": "1.102", "protected": bool(self.key), "llm": True},
            "/api/extra/perf": self._perf,
        }
        post: dict[str, Any] = {
            "/api/extra/tokencount": self._tokencount,
            "/api/extra/generate/check": self._check,
            "/api/extra/abort": self._abort,
            "/api/v1/generate": self._generate,
        }
        if streams:
            post["/api/extra/generate/stream"] = self._stream
        return [Route(path, _told(tell), methods=["GET"]) for path, tell in get.items()] + [
            Route(path, self._guarded(answer), methods=["POST"]) for path, answer in post.items()
        ]

    def _guarded(self, answer: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse(UNAUTHORIZED, 401)
            try:
                body = json.loads(await request.body())
            except ValueError:
                body = {}
            reply: Response = await answer(body)
            return reply

        return endpoint

    def _perf(self) -> dict[str, Any]:
        last = self.current
        return {
            "last_process": 0.0, "last_eval": 0.0, "last_token_count": last.tokens if last else 0,
            "stop_reason": last.stop_reason if last else INVALID, "total_gens": len(self.asked), "queue": 0,
            "idle": 0 if self.busy.locked() else 1, "hordeexitcounter": -1, "uptime": 1, "idletime": 1, "quiet": True,
        }  # fmt: skip

    async def _tokencount(self, body: dict[str, Any]) -> Response:
        if not isinstance(body.get("prompt", ""), str):
            return JSONResponse({"value": -1}, 400)
        ids = self.ids(body.get("prompt", "").partition("\0")[0], special=body.get("special", True))
        return JSONResponse({"value": len(ids), "ids": ids})

    async def _check(self, body: dict[str, Any]) -> Response:
        own = self.current is not None and body.get("genkey", "") == self.current.genkey
        return JSONResponse({"results": [{"text": self.current.text if own and self.current else ""}]})

    async def _abort(self, body: dict[str, Any]) -> Response:
        running = self.current
        if running is None or body.get("genkey", "") != running.genkey:
            return JSONResponse({"success": "false", "done": "false"})
        running.abort("abort")
        await asyncio.sleep(0.1)  # so does the real one
        return JSONResponse({"success": "true", "done": "true"})

    def _begun(self, body: dict[str, Any]) -> Generation | None:
        """A new generation that has the model, None while another one has it."""
        if not self.busy.acquire(blocking=False):
            return None
        self.asked.append(body)
        self.current = Generation(self, body)
        threading.Thread(target=self.current.run, daemon=True).start()
        return self.current

    async def _generate(self, body: dict[str, Any]) -> Response:
        if not body:
            return JSONResponse(BAD_INPUT, 500)
        running = self._begun(body)
        if running is None:
            return JSONResponse(BUSY, 503)
        while await running.pieces.get() is not None:
            pass
        result = {
            "text": running.trimmed, "finish_reason": running.finish_reason, "logprobs": None,
            "prompt_tokens": len(self.ids(body["prompt"])), "completion_tokens": running.tokens,
        }  # fmt: skip
        return JSONResponse({"results": [result]})

    async def _stream(self, body: dict[str, Any]) -> Response:
        if not body:
            return JSONResponse(BAD_INPUT, 500)
        running = self._begun(body)
        if running is None:
            return JSONResponse(BUSY, 503)
        return StreamingResponse(self._events(running, body), media_type="text/event-stream")

    async def _events(self, running: Generation, body: dict[str, Any]) -> AsyncIterator[str]:
        shown = 0
        try:
            while await running.pieces.get() is not None:
                text = running.trimmed
                held = max((_overlap(text, stop) for stop in body.get("stop_sequence", [])), default=0)
                if len(text) - held > shown:
                    yield _event(text[shown : len(text) - held], None)
                    shown = len(text) - held
            if len(running.trimmed) > shown:
                yield _event(running.trimmed[shown:], None)
            yield _event("", running.finish_reason)
        finally:
            asyncio.get_running_loop().call_later(DISCONNECT_S, running.abort, "disconnect")


def _told(tell: Any) -> Any:
    async def endpoint(_: Request) -> Response:
        return JSONResponse(tell())

    return endpoint


async def _nowhere(_: Request, __: Exception) -> Response:
    return HTMLResponse(NOWHERE, 404)


def _event(token: str, finish_reason: str | None) -> str:
    return f"event: message\ndata: {json.dumps({'token': token, 'finish_reason': finish_reason})}\n\n"


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return max((size for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)


def _grammar(asked: dict[str, Any]) -> LlamaGrammar | None:
    return LlamaGrammar.from_string(asked["grammar"], verbose=False) if asked.get("grammar") else None


def _samplers(asked: dict[str, Any]) -> dict[str, float]:
    return {
        "temp": asked.get("temperature", 0.7),
        "top_k": asked.get("top_k", 100),
        "top_p": asked.get("top_p", 0.92),
        "min_p": asked.get("min_p", 0.0),
        "repeat_penalty": asked.get("rep_pen", 1.0),
    }


@contextmanager
def running(gguf: Path, *, window: int = 512, key: str = "", streams: bool = True) -> Iterator[KoboldCppServer]:
    """A server that serves until the context ends."""
    server = KoboldCppServer(gguf, window=window, key=key, streams=streams)
    server.start()
    yield server
    server.stop()
