"""KoboldCpp by its own API, which tells window and tokens exactly and can be told to stop.

Messages are rendered in the Alpaca template, KoboldCpp's default for instructions. Not here: a queue
(KoboldCpp serves one generation at a time), tools, and log-probabilities: those that KoboldCpp tells are
taken after its samplers, so that the only candidate of a greedy choice is always certain.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from kitbash_ray.engines.base import Finish, Piece, Sampling, too_long
from kitbash_ray.engines.http import READ_S, Server, address, whole_number
from kitbash_ray.engines.turns import Turns
from kitbash_ray.errors import LayerError, LayerUnavailable
from kitbash_ray.types import Message, Usage

INSTRUCTION, RESPONSE = "\n### Instruction:\n", "\n### Response:\n"
#: What KoboldCpp itself stops at in this template.
TURN_ENDS = ("\n### Instruction:", "\n### Response:")
#: Its stop reasons for the end of the text and for a stop sequence.
STOPPED = (1, 2)
#: A heading of the template, however it is written; it begins where its hashes or the spaces before them begin.
HEADING = re.compile(r"(?<![# \t])[ \t]*#[# \t]*(?=(?:instruction|response|input|system)\b)", re.IGNORECASE)
#: How long a cancelled generation is waited for, and how long a busy server: it is still busy for a while after an abort.
ABORT_S, BUSY_S, BUSY_POLL_S = 1.0, 1.0, 0.05


class KoboldCpp:
    """The model that a KoboldCpp has loaded."""

    takes_tools = False
    keeps_schema = True

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        context_tokens: int | None = None,
        timeout_s: float = READ_S,
        key_setting: str = "the engine's key",
        most_waiting: int = 64,
    ) -> None:
        """`base_url` may end in `/api` or `/api/v1`, as KoboldCpp prints it."""
        root = address(base_url).removesuffix("/v1").removesuffix("/api")
        self._server = Server(root, kind="KoboldCpp", key=key, key_setting=key_setting, timeout_s=timeout_s)
        self.name = ""
        self._window = context_tokens
        self._streams = True
        self._turns = Turns(most_waiting)
        self._aborts: set[asyncio.Task[None]] = set()

    async def context_tokens(self) -> int:
        """The window that was given, else the one that KoboldCpp was started with."""
        if not self.name:
            await self._ask_for_model()
        if self._window is None:
            self._window = await self._number("GET", "/api/extra/true_max_context_length")
        return self._window

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return await self._tokens(render(messages))

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """What the model says; closing the iterator aborts the generation."""
        if sampling.tools:
            raise LayerError(f"The KoboldCpp at {self._server.url} cannot call tools here; use its OpenAI-compatible side.")
        prompt = render(messages)
        window, prompt_tokens = await self.context_tokens(), await self._tokens(prompt)
        if prompt_tokens + sampling.max_tokens > window:
            # KoboldCpp would cut the beginning of the prompt without a word
            raise too_long(prompt_tokens, sampling.max_tokens, self.name, window)
        body = _body(prompt, sampling, window)
        text, end = "", None
        async with self._turns.taken():
            done = False
            try:
                async with aclosing(self._tokens_of(body)) as events:
                    async for piece, finish in events:
                        text, end = text + piece, finish or end
                        if piece:
                            yield Piece(piece)
                done = True
            finally:
                if not done:
                    await self._abort(body["genkey"])
            finish, written = await self._end(end, text, sampling.max_tokens)
        yield Piece("", finish=finish, usage=Usage(prompt_tokens, written))

    async def aclose(self) -> None:
        await self._server.aclose()

    async def _ask_for_model(self) -> None:
        name = (await self._server.json("GET", "/api/v1/model")).get("result")
        if not isinstance(name, str):
            raise self._server.garbage(f"a model named {name}")
        if name == "inactive":
            raise LayerUnavailable(f"The KoboldCpp at {self._server.url} has no model loaded; start it with one.")
        self.name = name.removeprefix("koboldcpp/")

    async def _tokens(self, prompt: str, *, special: bool = True) -> int:
        """How many tokens `prompt` is; `special` adds the one at the beginning."""
        return await self._number("POST", "/api/extra/tokencount", {"prompt": prompt, "special": special})

    async def _number(self, method: str, path: str, body: dict[str, Any] | None = None) -> int:
        told = await self._server.json(method, path, body)
        number = whole_number(told.get("value"))
        if number is None:
            raise self._server.garbage(json.dumps(told))
        return number

    async def _tokens_of(self, body: dict[str, Any]) -> AsyncGenerator[tuple[str, str | None], None]:
        """Text and finish reason as they come, or all at once where there is no stream."""
        patience = time.monotonic() + BUSY_S
        while self._streams:
            async with self._server.asked("POST", "/api/extra/generate/stream", body) as response:
                if response.is_success:
                    said = None
                    async with aclosing(self._server.events(response)) as events:
                        async for said in events:
                            yield self._token(self._server.object(said))
                    if said is None:
                        raise self._server.broken_off()
                    return
                said = await self._server.text(response)
                if response.status_code == 404:
                    self._streams = False
                elif response.status_code != 503 or time.monotonic() > patience:
                    raise self._server.refusal(response, said)
            await asyncio.sleep(BUSY_POLL_S)
        yield self._result(await self._server.json("POST", "/api/v1/generate", body))

    def _token(self, event: dict[str, Any]) -> tuple[str, str | None]:
        token, finish = event.get("token"), event.get("finish_reason")
        if not isinstance(token, str) or not isinstance(finish, str | None):
            raise self._server.garbage(json.dumps(event))
        if finish == "error":
            raise LayerError(f"The KoboldCpp at {self._server.url} could not go on; look into its log.")
        return token, finish

    def _result(self, told: dict[str, Any]) -> tuple[str, str | None]:
        results = told.get("results")
        if not isinstance(results, list) or not results or not isinstance(results[0], dict):
            raise self._server.garbage(json.dumps(told))
        return self._token({"token": results[0].get("text"), "finish_reason": results[0].get("finish_reason")})

    async def _end(self, told: str | None, text: str, most: int) -> tuple[Finish, int]:
        """How the text ended, and its number of tokens.

        KoboldCpp's stream says "length" at a stop sequence too, and some versions say nothing; what it
        tells of its last generation is exact, unless another client has begun one in between.
        """
        try:
            last = await self._server.json("GET", "/api/extra/perf")
        except LayerUnavailable:
            raise
        except LayerError:
            last = {}  # an old version
        if told is None and last.get("idle") == 0:
            raise self._server.broken_off()  # the stream is over, and the model goes on
        written = whole_number(last.get("last_token_count"))
        if written is None or written > most:
            written = await self._tokens(text, special=False) if text else 0
        if told == "stop" or last.get("stop_reason") in STOPPED:
            return "stop", written
        return ("length" if told or written >= most else "stop"), written

    async def _abort(self, genkey: str) -> None:
        """Tell the server to stop, and wait for its answer; a second cancellation does not take the word back."""
        task = asyncio.create_task(self._send_abort(genkey))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)
        await asyncio.wait({task})

    async def _send_abort(self, genkey: str) -> None:
        try:
            await asyncio.wait_for(self._server.json("POST", "/api/extra/abort", {"genkey": genkey}), ABORT_S)
        except (LayerError, asyncio.TimeoutError):
            return  # gone, or busy: the closed connection says the same, a little later


def render(messages: Sequence[Message]) -> str:
    """The prompt of a conversation: system texts first, then the turns, then the heading of the answer."""
    system = "\n\n".join(_defused(message.content) for message in messages if message.role == "system")
    turns = "".join(
        (RESPONSE if message.role == "assistant" else INSTRUCTION) + _defused(message.content)
        for message in messages
        if message.role != "system"
    )
    return system + turns + RESPONSE


def _defused(text: str) -> str:
    """`text` without headings of the template, which would end its turn, and without what ends a string in C."""
    return HEADING.sub(" ", text).replace("\x00", " ")


def _body(prompt: str, sampling: Sampling, window: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_length": sampling.max_tokens,
        "max_context_length": window,
        "temperature": sampling.temperature or 1.0,
        "top_p": sampling.top_p,
        # KoboldCpp's own defaults are not neutral, and differ between versions
        "top_k": 0 if sampling.temperature else 1,
        "min_p": 0.0,
        "rep_pen": 1.0,
        "stop_sequence": [*sampling.stop, *TURN_ENDS],
        "trim_stop": True,
        "sampler_seed": -1 if sampling.seed is None else sampling.seed,
        "genkey": f"KITBASH{secrets.token_hex(8)}",
        "quiet": True,
    }
    if sampling.json_schema is not None:
        body["grammar"] = _grammar(sampling.json_schema)
    return body


def _grammar(schema: dict[str, Any]) -> str:
    """GBNF for JSON of `schema`, of any object if it is empty."""
    from llama_cpp.llama_grammar import JSON_GBNF, json_schema_to_gbnf

    if not schema:
        return str(JSON_GBNF)
    try:
        return str(json_schema_to_gbnf(json.dumps(schema)))
    except Exception as error:  # the converter raises whatever it comes across: KeyError, AssertionError, ValueError
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise LayerError(f"The JSON schema cannot be kept to ({why}); write a simpler one.") from error
