"""What the engines over HTTP share: one connection pool, server-sent events, and foreign errors as ours.

Not here: what a particular server wants to be asked, and waiting for a server that is busy.
"""

from __future__ import annotations

import asyncio
import json
import re
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import httpx

from kitbash_ray.errors import ConfigError, LayerError, LayerUnavailable

CONNECT_S = 3.0
#: Silence that ends a request; a layer's own timeout is mostly shorter. A long prompt is read in silence.
READ_S = 300.0
#: The longest line of an event stream and the longest other body; more is no answer of an engine.
MAX_LINE, MAX_BODY = 4 * 2**20, 16 * 2**20
#: How much of a server's own words goes into ours.
MESSAGE_CHARS = 200
#: Statuses below 500 that pass by themselves: request timeout, too early, too many requests.
PASSING = frozenset({408, 425, 429})
#: The only beginnings of a line of server-sent events.
FIELDS = ("data", "event", "id", "retry", "")


class Server:
    """An HTTP server as an engine sees it: requests out, objects in, and each fault as one sentence."""

    def __init__(self, url: str, *, kind: str, key: str | None, key_setting: str, timeout_s: float) -> None:
        """`kind` and `key_setting` are words for the messages. Raises ConfigError for what is no address or no key."""
        self.url = address(url)
        self.kind = kind
        self._key_setting = key_setting
        self._timeout = httpx.Timeout(timeout_s, connect=CONNECT_S, pool=None)
        self._headers = {"Content-Type": "application/json"}
        if key:
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(f"A key has characters that no HTTP header can hold; correct {key_setting}.")
            self._headers["Authorization"] = f"Bearer {key}"
        # A pool belongs to one event loop, and an engine may serve one loop after another.
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = weakref.WeakKeyDictionary()

    @asynccontextmanager
    async def asked(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> AsyncGenerator[httpx.Response, None]:
        """The reply to a request, its body not read yet; leaving the context closes the connection if any is left.

        Raises LayerUnavailable when nobody answers or the answer breaks off, also while it is being read.
        """
        timeout = self._timeout if timeout_s is None else httpx.Timeout(timeout_s)
        content = None if body is None else json.dumps(body).encode()
        try:
            async with self._client().stream(method, self.url + path, content=content, timeout=timeout) as response:
                yield response
        except httpx.DecodingError as error:
            raise self.garbage(str(error)) from error
        except httpx.HTTPError as error:
            raise self._unavailable(error, timeout) from error

    async def json(self, method: str, path: str, body: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """The object that a request is answered with. Raises LayerError when it is refused."""
        async with self.asked(method, path, body, **options) as response:
            text = await self.text(response)
            if not response.is_success:
                raise self.refusal(response, text)
        return self.object(text)

    async def text(self, response: httpx.Response) -> str:
        """The whole body."""
        body = b""
        async with aclosing(_chunks(response)) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BODY:
                    raise self.garbage("a body without end")
        return body.decode(errors="replace")

    def object(self, text: str) -> dict[str, Any]:
        """`text` as a JSON object. Raises LayerError if it is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.garbage(text) from error
        if not isinstance(value, dict):
            raise self.garbage(text)
        return value

    async def events(self, response: httpx.Response) -> AsyncGenerator[str, None]:
        """The data of each server-sent event of a reply, whatever content type it claims to have."""
        data: list[str] = []
        async with aclosing(self._lines(response)) as lines:
            async for line in lines:
                if not line:
                    if data:
                        yield "\n".join(data)
                    data = []
                    continue
                name, _, value = line.partition(":")
                if name not in FIELDS:
                    raise self.garbage(line)
                if name == "data":
                    data.append(value.removeprefix(" "))
        if data:  # the last event is not closed: either the server saves its newline, or it broke off
            last = "\n".join(data)
            if not _whole(last):
                raise self.broken_off()
            yield last

    def refusal(self, response: httpx.Response, text: str) -> LayerError:
        """What to raise for a reply that is no success; `text` is its body."""
        status = response.status_code
        said = words(text)
        reply = f"HTTP {status}: {said}" if said else f"HTTP {status}"
        if status in (401, 403):
            return LayerError(f"{self.url} refused the key: set {self._key_setting} to one that it accepts.")
        if status >= 500 or status in PASSING:
            return LayerUnavailable(f"{self.url} cannot answer now ({reply}); look into its log or ask again later.")
        if 300 <= status < 400:
            where = _short(response.headers.get("location", ""))
            return LayerError(f"{self.url} sends requests on to {where!r}; set the address to where the server really is.")
        return LayerError(f"{self.url} refused the request ({reply}).")

    def garbage(self, text: str) -> LayerError:
        """What to raise for an answer that makes no sense."""
        return LayerError(f"{self.url} does not answer like {self.kind} ({_short(text, 60)!r}); check the address.")

    def broken_off(self) -> LayerUnavailable:
        """What to raise for an answer without an end."""
        return LayerUnavailable(f"{self.url} broke off in the middle of its answer; look into its log and ask again.")

    async def aclose(self) -> None:
        """Close the connections of this event loop; those of loops that have ended are gone with them."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client:
            await client.aclose()

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # The environment is read in config.py only: no proxies and no .netrc from there
            client = httpx.AsyncClient(headers=self._headers, timeout=self._timeout, trust_env=False)
            self._clients[loop] = client
        return client

    async def _lines(self, response: httpx.Response) -> AsyncGenerator[str, None]:
        rest = b""
        async with aclosing(_chunks(response)) as chunks:
            async for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.removesuffix(b"\r").decode(errors="replace")
                if len(rest) > MAX_LINE:
                    raise self.garbage("a line without end")
        if rest:
            yield rest.decode(errors="replace")

    def _unavailable(self, error: httpx.HTTPError, timeout: httpx.Timeout) -> LayerUnavailable:
        if isinstance(error, httpx.ConnectTimeout):
            return LayerUnavailable(f"Nothing answers at {self.url}; start the server there or correct the address.")
        if isinstance(error, httpx.ConnectError):
            why = _short(str(error)) or type(error).__name__
            return LayerUnavailable(f"Cannot connect to {self.url} ({why}); start the server there or correct the address.")
        if isinstance(error, httpx.TimeoutException):
            return LayerUnavailable(f"{self.url} said nothing for {timeout.read:g} seconds; look whether it hangs.")
        return self.broken_off()


def _chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    return cast("AsyncGenerator[bytes, None]", response.aiter_bytes())  # it is one, but httpx promises less


def address(url: str) -> str:
    """`url` without a slash at its end. Raises ConfigError if it is no address of a server."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL:
        parsed = httpx.URL()
    # A name and a password in the address would stand in every message; a key has its own setting.
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        shown = re.sub(r"//[^/]*@", "//", url)
        raise ConfigError(f"{shown!r} is no address of a server; write it like http://127.0.0.1:5001.")
    return str(parsed).rstrip("/")


def whole_number(value: object) -> int | None:
    """`value` if it is a positive whole number: what a server says is not always what its documents say."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def words(text: str) -> str:
    """A server's own words about an error: the shapes of OpenAI, KoboldCpp and FastAPI, else the text itself."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return _short(re.sub(r"<[^>]*>", " ", text[:MAX_LINE]))
    for _ in range(4):
        if isinstance(value, list) and value:
            value = value[0]
        elif isinstance(value, dict):
            value = next((value[key] for key in ("error", "detail", "message", "msg") if value.get(key)), None)
    return _short(value) if isinstance(value, str) else _short(text)


def _short(text: str, most: int = MESSAGE_CHARS) -> str:
    line = " ".join(text[: 8 * most].split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _whole(data: str) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return data.strip() == "[DONE]"
    return True
