"""Any server that speaks OpenAI's chat completions: llama-server, vLLM, Ollama, LM Studio, a cloud.

The server renders the prompt, samples, and cuts at stop sequences. Fields that a server does not
know are left out once it has refused them. Not here: a queue, and images or sound.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kitbash_ray.engines.base import Finish, Piece, Sampling, too_long
from kitbash_ray.engines.http import READ_S, Server, address, whole_number, words
from kitbash_ray.errors import LayerError, LayerUnavailable
from kitbash_ray.types import Message, Usage

#: The window of a server that does not tell one; Ollama's default.
DEFAULT_WINDOW = 4096
#: An estimate of tokens where no server counts them: characters a token, and what a template adds to a message.
CHARS_A_TOKEN, TOKENS_A_MESSAGE = 3.5, 8
#: What a server may refuse and is then asked without, by what its refusal says; `max_tokens` has another name there.
OPTIONAL = {
    "logprobs": "logprobs",
    "stream_options": "stream_options",
    "seed": "seed",
    "max_tokens": "max_completion_tokens",
}
#: Where servers count tokens: llama-server and vLLM, llama-cpp-python.
COUNTING_ROUTES = ("/tokenize", "/extras/tokenize/count")
#: What servers call an end, as ours. Whatever else there is ("content_filter") is a stop.
ENDS: dict[str, Finish] = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}


class OpenAIEngine:
    """A model behind an OpenAI-compatible endpoint."""

    takes_tools = True
    keeps_schema = True

    def __init__(
        self,
        base_url: str,
        *,
        model: str = "",
        key: str | None = None,
        context_tokens: int | None = None,
        timeout_s: float = READ_S,
        key_setting: str = "the engine's key",
    ) -> None:
        """`base_url` with or without `/v1`. Without `model` the first that the server lists is used."""
        root = address(base_url).removesuffix("/v1")
        # Another path is taken as it is (/v1beta/openai, /api/paas/v4): only a bare host lacks its /v1
        self._api = "" if urlsplit(root).path and not base_url.rstrip("/ ").endswith("/v1") else "/v1"
        self._server = Server(root, kind="an OpenAI-compatible server", key=key, key_setting=key_setting, timeout_s=timeout_s)
        self.name = model
        self._model_asked = False
        self._window = context_tokens
        self._counting: tuple[str, ...] = COUNTING_ROUTES
        self._left_out: frozenset[str] = frozenset()

    async def context_tokens(self) -> int:
        """The window that was given, else what the server tells, else 4096."""
        if self._window is None:
            await self._ask_for_model()
        return self._window or DEFAULT_WINDOW

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """By the server if it has a route for it, else (a cloud, Ollama) an estimate from the number of characters."""
        text = "\n".join(message.content for message in messages)
        around = TOKENS_A_MESSAGE * len(messages)
        body: dict[str, Any] = {"messages": msgspec.to_builtins(list(messages)), "content": text, "input": text}
        for route in self._counting:
            async with self._server.asked("POST", route, body) as response:
                said = _object(await self._server.text(response)) if response.is_success else {}
            count = _count(said)
            if count is not None:
                self._counting = (route,)
                # vLLM renders the messages itself; the others count bare text
                return count if "max_model_len" in said else count + around
        self._counting = ()
        return round(len(text) / CHARS_A_TOKEN) + around

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """What the model says; closing the iterator closes the connection, which is how the server learns to stop."""
        window, prompt_tokens = await self.context_tokens(), await self.count_tokens(messages)
        if prompt_tokens + sampling.max_tokens > window:
            raise too_long(prompt_tokens, sampling.max_tokens, self.name or self._server.url, window)
        if not self.name and not self._model_asked:
            await self._ask_for_model()
        reply = _Reply(self._server)
        async with aclosing(self._stream(self._body(messages, sampling))) as chunks:
            async for data in chunks:
                if data.strip() == "[DONE]":
                    reply.finish = reply.finish or "stop"
                    break
                piece = reply.take(self._server.object(data))
                if piece:
                    yield piece
        yield reply.last(prompt_tokens)

    async def aclose(self) -> None:
        await self._server.aclose()

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": msgspec.to_builtins(list(messages)),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 1,  # llama-cpp-python tells none without it
        }
        if self.name:
            body["model"] = self.name
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.json_schema:
            schema = {"name": "answer", "schema": sampling.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif sampling.json_schema is not None:
            body["response_format"] = {"type": "json_object"}
        if sampling.tools:
            body["tools"] = list(sampling.tools)
            if sampling.tool_choice is not None:
                body["tool_choice"] = sampling.tool_choice
        return body

    async def _stream(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        """The data of each event; asks again without a field that the server refuses by its name."""
        left_out = self._left_out
        while True:
            asked = _without(body, left_out)
            async with self._server.asked("POST", self._api + "/chat/completions", asked) as response:
                if response.is_success:
                    self._left_out = left_out
                    async with aclosing(self._server.events(response)) as events:
                        async for data in events:
                            yield data
                    return
                text = await self._server.text(response)
                refused = {field for field, sign in OPTIONAL.items() if field in asked and sign in text}
                # 422 and 500 too: servers differ in what they call a field that they do not know
                if not refused or response.status_code in (401, 403, 404, 429):
                    raise self._server.refusal(response, text)
                left_out |= refused

    async def _ask_for_model(self) -> None:
        """Name and window from the list of models. A server without such a list leaves both as they are."""
        try:
            models = (await self._server.json("GET", self._api + "/models")).get("data")
        except LayerUnavailable:
            raise
        except LayerError:
            models = None
        self._model_asked = True
        entries = [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
        own = next((entry for entry in entries if entry.get("id") == self.name), entries[0] if entries else {})
        if own.get("owned_by") == "koboldcpp":  # its probabilities are those after sampling: 1 for a greedy choice
            self._left_out |= {"logprobs"}
        if not self.name and isinstance(own.get("id"), str):
            self.name = own["id"]
        if self._window is None:
            told = own if own.get("id") == self.name else {}
            self._window = await self._told_window(told)

    async def _told_window(self, entry: dict[str, Any]) -> int:
        for field in ("max_model_len", "context_length"):
            if window := whole_number(entry.get(field)):
                return window
        meta = entry.get("meta")
        if not isinstance(meta, dict):
            return DEFAULT_WINDOW
        # llama-server: what it was trained with is mostly more than what it was started with
        async with self._server.asked("GET", "/props") as response:
            props = _object(await self._server.text(response)) if response.is_success else {}
        running = props.get("default_generation_settings")
        started_with = whole_number(running.get("n_ctx")) if isinstance(running, dict) else None
        return started_with or whole_number(meta.get("n_ctx_train")) or DEFAULT_WINDOW


class _Reply:
    """What the chunks of one reply add up to."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.finish: Finish | None = None
        self._usage: Usage | None = None
        self._tokens = 0
        self._calls: list[dict[str, Any]] = []
        self._place: dict[int, int] = {}  # the server's index to ours

    def take(self, chunk: dict[str, Any]) -> Piece | None:
        """The piece that is in a chunk, if there is one."""
        if chunk.get("error"):
            raise LayerError(f"{self._server.url} stopped: {words(msgspec.json.encode(chunk).decode())}.")
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = Usage(
                whole_number(usage.get("prompt_tokens")) or 0, whole_number(usage.get("completion_tokens")) or 0
            )
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise self._server.garbage(msgspec.json.encode(chunk).decode())
        if not choices:
            return None
        choice = choices[0]
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict | None) or not isinstance(choice, dict):
            raise self._server.garbage(msgspec.json.encode(chunk).decode())
        if choice.get("finish_reason"):
            self.finish = ENDS.get(str(choice["finish_reason"]), "stop")
        for call in (delta or {}).get("tool_calls") or ():
            self._add(call)
        text, logprobs = str((delta or {}).get("content") or ""), _logprobs(choice.get("logprobs"))
        self._tokens += len(logprobs) or bool(text)
        return Piece(text, logprobs) if text or logprobs else None

    def last(self, prompt_tokens: int) -> Piece:
        """The end of the text. Without usage of the server's own, a piece counts as a token."""
        if self.finish is None:
            raise self._server.broken_off()
        usage = self._usage or Usage(prompt_tokens, self._tokens)
        return Piece("", finish=self.finish, usage=usage, tool_calls=tuple(self._calls))

    def _add(self, call: Any) -> None:
        """One delta of a tool call: the first names the function, the others go on with its arguments."""
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise self._server.garbage(str(call))
        index = call.get("index")
        index = index if isinstance(index, int) else len(self._calls)
        known = self._place.get(index)
        # Ollama gives every call of a reply the index 0
        if known is None or (call.get("id") and call["id"] != self._calls[known]["id"]):
            known = self._place[index] = len(self._calls)
            made = {"id": str(call.get("id") or f"call_{known}"), "type": "function"}
            self._calls.append(made | {"function": {"name": "", "arguments": ""}})
        whole = self._calls[known]["function"]
        whole["name"] += str(function.get("name") or "")
        arguments = function.get("arguments") or ""
        whole["arguments"] += arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _without(body: dict[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    left = {name: value for name, value in body.items() if name not in fields}
    if "logprobs" in fields:
        left.pop("top_logprobs", None)
    if "max_tokens" in fields:
        left["max_completion_tokens"] = body["max_tokens"]
    return left


def _logprobs(told: object) -> tuple[float, ...]:
    """The log-probabilities of a chunk's tokens; none where the server tells none."""
    content = told.get("content") if isinstance(told, dict) else None
    items = [item.get("logprob") for item in content if isinstance(item, dict)] if isinstance(content, list) else []
    return tuple(float(value) for value in items if isinstance(value, int | float))


def _object(text: str) -> dict[str, Any]:
    """`text` as an object; an empty one if it is none: the routes that ask so are not everywhere."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _count(told: dict[str, Any]) -> int | None:
    tokens = told.get("tokens")
    return len(tokens) if isinstance(tokens, list) else whole_number(told.get("count"))
