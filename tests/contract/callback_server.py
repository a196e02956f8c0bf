"""Somebody who gave a callback address: a real HTTP server that keeps what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class Receiver:
    """Replies with `statuses` one by one, the last one again and again; 0 closes the connection without a word."""

    def __init__(self, *statuses: int) -> None:
        self._statuses: Sequence[int] = statuses or (204,)
        self.url = ""
        self.bodies: list[bytes] = []
        self.told = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"post /told")
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        status = self._statuses[min(len(self.bodies), len(self._statuses) - 1)]
        self.bodies.append(await reader.readexactly(length))
        if status:
            writer.write(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
            await writer.drain()
        writer.close()
        self.told.set()


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[Receiver]:
    found = Receiver(*statuses)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/told"
    try:
        yield found
    finally:
        server.close()
