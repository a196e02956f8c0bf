"""Servers that misbehave: each path is answered with given bytes, or in a manner of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Manner = Callable[[asyncio.StreamWriter], Awaitable[None]]
Answer = bytes | Manner

STREAMS = ("/v1/chat/completions", "/api/extra/generate/stream")


def reply(body: bytes | str | dict[str, Any], status: int = 200, kind: str = "application/json") -> bytes:
    """A whole HTTP reply."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + data


def stream(body: bytes | str, *, kind: str = "text/event-stream") -> bytes:
    """A reply whose end is the end of the connection."""
    data = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode() + data


def events(*objects: Any) -> str:
    """Server-sent events; a string is taken as it is."""
    return "".join(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n" for item in objects)


def dripping(data: bytes) -> Manner:
    """`data` byte by byte."""

    async def write(writer: asyncio.StreamWriter) -> None:
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    return write


#: What both engines ask before they generate, answered well.
GOOD: dict[str, Answer] = {
    "/v1/models": reply({"object": "list", "data": [{"id": "tiny"}]}),
    "/api/v1/model": reply({"result": "koboldcpp/tiny"}),
    "/api/extra/true_max_context_length": reply({"value": 512}),
    "/api/extra/tokencount": reply({"value": 5, "ids": [1] * 5}),
    "/api/extra/perf": reply({"last_token_count": 2, "stop_reason": 1, "idle": 1}),
    "/api/extra/abort": reply({"success": "true", "done": "true"}),
}


class BadServer:
    """What it was asked, and an event for each thing that a test may wait for."""

    def __init__(self, answers: dict[str, Answer], otherwise: Answer) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.reached, self.left = asyncio.Event(), asyncio.Event()
        self._answers, self._otherwise = answers, otherwise

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, _, body in self.asked if asked == path]

    async def silence(self, writer: asyncio.StreamWriter) -> None:
        """Say nothing until the client has gone."""
        self.reached.set()
        await self._reader.read()
        self.left.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            path = first.split()[1]
            self.asked.append((path, headers, json.loads(body or "{}")))
            self._reader = reader
            answer = self._answers.get(path, self._otherwise)
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    streamed: Answer | None = None, *, otherwise: Answer | None = None, **answers: Answer
) -> AsyncIterator[BadServer]:
    """A server that answers generations with `streamed`, and everything else well unless `otherwise` is given."""
    known = {} if otherwise is not None else dict(GOOD)
    known |= {path.replace("__", "/"): answer for path, answer in answers.items()}
    if streamed is not None:
        known |= dict.fromkeys(STREAMS, streamed)
    server = BadServer(known, reply("Not Found", 404, "text/plain") if otherwise is None else otherwise)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield server
