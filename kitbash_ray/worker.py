"""A worker outside the cluster: serves one layer to a front door over HTTP, and needs neither Ray nor Redis.

Claims work, answers it, hands the result in, and says every second that it lives and what it has
at hand; what the front door wants back it gives up. While the front door cannot be reached it
tries again for ever. Not here: the layer (one_layer.py), the front door's side (actors/work_routes.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import platform
import random
import ssl
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
from msgspec import MsgspecError

from kitbash_ray.client import CONNECT_S, raise_for
from kitbash_ray.errors import ClientError, ConfigError, KitbashError, NotRunning
from kitbash_ray.types import Layer, LayerResult, decode, encode
from kitbash_ray.work_types import CLAIM_WAIT_S, BeatIn, BeatOut, ClaimIn, Work, WorkerIn, read_result

#: Seconds between two heartbeats, and that a reply may take.
BEAT_S, REPLY_S = 1.0, 5.0
#: The shortest and the longest pause before another attempt, in seconds.
PAUSE_S = (0.25, 4.0)
BUSY = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT}


class Door:
    """The front door's routes for one layer."""

    def __init__(self, url: str, token: str, layer: str, *, ca: Path | None = None, insecure: bool = False) -> None:
        """Raises ConfigError for an address that would show the token to others, or a certificate that is none."""
        self.url = _checked(url, insecure)
        self._http = httpx.AsyncClient(
            base_url=f"{self.url}/v1/work/{layer}",
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            verify=_trusted(ca),
            trust_env=False,
        )

    async def post(self, path: str, body: bytes, wait_s: float = 0.0) -> httpx.Response:
        """The reply, after at most `wait_s` more than usual.

        Raises NotRunning for what another attempt may cure, else ClientError.
        """
        try:
            reply = await self._http.post(path, content=body, timeout=httpx.Timeout(REPLY_S + wait_s, connect=CONNECT_S))
        except httpx.TransportError as error:
            hint = "; name its certificate with --ca" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
            raise NotRunning(f"{self.url} cannot be reached: {str(error) or type(error).__name__}{hint}") from error
        if reply.is_server_error or reply.status_code in BUSY:
            raise NotRunning(f"{self.url} replied {reply.status_code} {reply.reason_phrase}", status=reply.status_code)
        if reply.is_redirect:
            raise ClientError(f"{self.url} sends on to {reply.headers.get('location', '')[:200]!r}: give that address.")
        raise_for(reply)
        return reply

    async def close(self) -> None:
        await self._http.aclose()


class Worker:
    """Answers with `layer` what comes through `door`, one question at a time. `tell` hears of each change."""

    def __init__(self, layer: Layer, door: Door, me: WorkerIn, model: Callable[[], str], tell: Callable[[str], None]) -> None:
        self._layer = layer
        self._door = door
        self._me = me
        self._model = model
        self._tell = tell
        self._since = time.time()
        self._connected: bool | None = None
        self._working: dict[str, asyncio.Task[LayerResult]] = {}
        self._waiting: asyncio.Task[Any] | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`. Raises ClientError when the front door refuses the worker for good."""
        sides: list[asyncio.Task[None]] = [asyncio.ensure_future(side) for side in (self._beat(), self._serve())]
        try:
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            for side in sides:
                if side.done():
                    side.result()
        finally:
            for task in (*sides, *self._working.values()):
                task.cancel()
            await asyncio.wait(sides)
            await self._leave()
            await self._door.close()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """End after the question at hand."""
        if self._working:
            self._tell("stopping after the question at hand")
        self._stopping.set()

    async def _serve(self) -> None:
        pauses = Pauses()
        while not self._stopping.is_set():
            try:
                work = await self._unless_stopping(self._claim())
            except NotRunning as error:
                self._lost(error)
                await self._unless_stopping(pauses.wait())
                continue
            pauses.reset()
            if work:
                await self._do(work)

    async def _claim(self) -> Work | None:
        free = ClaimIn(**self._me.model_dump())
        reply = await self._door.post("/claim", free.model_dump_json().encode(), CLAIM_WAIT_S)
        return _understood(Work, reply) if reply.content else None

    async def _do(self, work: Work) -> None:
        """Answer `work` and hand the result in, unless it is called off or its time is over."""
        end = time.monotonic() + work.seconds
        task = self._working[work.id] = asyncio.ensure_future(self._answer(work))
        try:
            await asyncio.wait((task,), timeout=work.seconds)
            if task.done() and not task.cancelled():
                await self._hand_in(work.id, task.result(), end)
        finally:
            task.cancel()
            del self._working[work.id]

    async def _answer(self, work: Work) -> LayerResult:
        try:
            result = await self._layer.answer(work.query, work.so_far)
            read_result(self._layer.name, encode(result))
        except Exception as error:  # one question's fault must not end the worker
            kind = "" if isinstance(error, KitbashError) else f"{type(error).__name__}: "
            return LayerResult(self._layer.name, "failed", reason=f"{kind}{error}"[:300])
        return result

    async def _hand_in(self, work_id: str, result: LayerResult, end: float) -> None:
        pauses = Pauses()
        while time.monotonic() < end:
            try:
                await self._door.post(f"/{work_id}/result?worker={self._me.worker}", encode(result))
                return
            except NotRunning as error:
                self._lost(error)
                await pauses.wait()
            except ClientError as error:
                if error.status != httpx.codes.CONFLICT:  # then it was called off, or somebody else had it
                    raise
                return

    async def _beat(self) -> None:
        pauses = Pauses()
        while True:
            try:
                reply = await self._door.post("/heartbeat", self._state().model_dump_json().encode())
            except NotRunning as error:
                self._lost(error)
                await pauses.wait()
                continue
            pauses.reset()
            self._found()
            for work_id in _understood(BeatOut, reply).give_up:
                if task := self._working.get(work_id):
                    task.cancel()
            await asyncio.sleep(BEAT_S)

    async def _leave(self) -> None:
        if self._connected:
            try:
                leaving = self._state().model_copy(update={"state": "leaving"})
                await self._door.post("/heartbeat", leaving.model_dump_json().encode())
            except ClientError as error:  # its lease ends without a word, too
                self._lost(error)
        self._tell("stopped")

    def _state(self) -> BeatIn:
        return BeatIn(
            **self._me.model_dump(),
            working=tuple(self._working),
            model=self._model()[:200],
            node=platform.node()[:200],
            pid=os.getpid(),
            since=self._since,
        )

    def _found(self) -> None:
        if not self._connected:
            self._tell(
                f"connected to {self._door.url} as {self._me.worker}: serving {self._layer.name} {self._model()}".rstrip()
            )
        self._connected = True

    def _lost(self, error: ClientError) -> None:
        if self._connected is not False:
            self._tell(f"{error}; trying again")
        self._connected = False
        if self._waiting:  # what waits at a connection that is gone would wait long
            self._waiting.cancel()

    async def _unless_stopping(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What `call` gives, None when the worker is told to stop or loses the front door meanwhile."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        task = self._waiting = asyncio.ensure_future(call)
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() and not task.cancelled() else None
        finally:
            self._waiting = None
            task.cancel()
            stopping.cancel()


class Pauses:
    """Pauses between attempts: each about twice as long as the one before, not two workers at the same moment."""

    def __init__(self) -> None:
        self._next = PAUSE_S[0]

    async def wait(self) -> None:
        pause, self._next = self._next, min(2 * self._next, PAUSE_S[1])
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    def reset(self) -> None:
        self._next = PAUSE_S[0]


def _understood(kind: type[Any], reply: httpx.Response) -> Any:
    try:
        return decode(kind, reply.content)
    except MsgspecError as error:
        raise ClientError(f"What answers at {reply.url.host} is no front door of this version: {error}.") from error


def _checked(url: str, insecure: bool) -> str:
    """The address without its final slash. Raises ConfigError when the token would travel in clear."""
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError(f"{url!r} is no address of a front door; write it as https://kitbash.example.")
    if parts.scheme == "http" and not insecure and not _loopback(parts.host):
        raise ConfigError(
            f"{url} would show the token to whoever listens: use https://, or --insecure in a network that you trust."
        )
    return url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trusted(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{ca} is no certificate in PEM form ({error}): name the one that signed the front door's."
        ) from error
