"""llama.cpp in this process: opening any GGUF, and generating text with one.

A generation runs in the thread of compute.py and hands tokens to the event loop one by one.
Closing the iterator sets a flag that llama.cpp reads between tokens and between the
batches of a long prompt, so the model is free again within a few milliseconds.
Not here: several contexts, and tools.
"""

from __future__ import annotations

import asyncio
import codecs
import ctypes
import json
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kitbash_ray.engines.base import Finish, Piece, Sampling, too_long
from kitbash_ray.engines.compute import THREAD
from kitbash_ray.engines.gguf_header import is_gguf
from kitbash_ray.engines.stopper import Stopper
from kitbash_ray.engines.turns import Turns
from kitbash_ray.errors import LayerError, ModelError
from kitbash_ray.types import Message, Usage

THREAD_END = None
#: What the thread hands over: text, the error it ended with, or its end.
Waiting = Piece | Exception | None
#: llama.cpp's names of encoders, which load as if they could generate.
EMBEDDING_ARCHITECTURES = frozenset({"bert", "nomic-bert", "jina-bert-v2", "modern-bert", "t5encoder"})


def load_gguf(model: Path, **parameters: Any) -> Any:
    """A `llama_cpp.Llama` over the file `model`.

    Raises ModelError with one sentence when the file is missing, empty, truncated,
    no GGUF, or of an architecture that this llama.cpp does not know.
    """
    import llama_cpp

    if not model.is_file():
        raise ModelError(f"There is no model file {str(model)!r}; check the path in the settings.")
    if not is_gguf(model):
        raise ModelError(f"{str(model)!r} is no GGUF file (its first four bytes are not 'GGUF').")
    complaints = _capture_log(llama_cpp)
    complaints.clear()
    _avoid_amx()
    try:
        return llama_cpp.Llama(model_path=str(model), verbose=False, **parameters)
    except Exception as error:  # llama-cpp-python raises ValueError, AssertionError, RuntimeError and more
        why = " ".join(complaints[0].split()) if complaints else str(error) or type(error).__name__
        raise ModelError(f"llama.cpp cannot load {str(model)!r}: {why}") from error


class LlamaCpp:
    """One GGUF with one context. Further generations wait for their turn."""

    takes_tools = False
    keeps_schema = True

    def __init__(
        self,
        model: Path,
        *,
        context_tokens: int,
        threads: int | None = None,
        gpu_layers: int = 0,
        most_waiting: int = 64,
        name: str | None = None,
        **parameters: Any,
    ) -> None:
        """Load `model`, named by its file without `name`; `parameters` are more of `llama_cpp.Llama`'s.

        Raises ModelError when that does not work.
        """
        self._llama = load_gguf(
            model,
            n_ctx=context_tokens,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            **{"n_threads_batch": threads, **parameters},
        )
        self.name = name or model.stem
        self._window = int(self._llama.n_ctx())
        self._turns = Turns(most_waiting)
        self._adapter: Any = None
        self._ends = {self._llama.token_eos(), llama_token_eot(self._llama)}
        if self._llama.metadata.get("general.architecture") in EMBEDDING_ARCHITECTURES:
            raise ModelError(f"{str(model)!r} is an embedding model; this layer needs one that generates text.")
        self._template = self._chat_template()
        self._control = self._control_tokens()

    async def context_tokens(self) -> int:
        return self._window

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.tokens(messages))

    async def aclose(self) -> None:
        """Nothing to let go of: the memory goes with the object."""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of `messages` in the model's own chat template, plain text if it has none.

        A control token that stands in the texts themselves is dropped: a question or a document
        that holds `<|im_end|>` must not end its own turn.
        """
        return self._template([{"role": item.role, "content": self._control.sub(" ", item.content)} for item in messages])

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        if sampling.tools:
            raise LayerError(f"{self.name} cannot call tools here; use an OpenAI-compatible engine that can.")
        tokens = self.tokens(messages)
        if len(tokens) + sampling.max_tokens > self._window:
            raise too_long(len(tokens), sampling.max_tokens, self.name, self._window)
        parameters = self._parameters(sampling)
        async with self._turns.taken():
            cancelled, made = threading.Event(), 0
            source = self._pieces(tokens, sampling.max_tokens, parameters, cancelled)
            async with aclosing(_in_thread(source, cancelled)) as pieces:
                stopper = Stopper(sampling.stop)
                async for piece in pieces:
                    made += len(piece.logprobs)
                    if (told := stopper.take(piece)) is not None:
                        yield told
                    if stopper.stopped:
                        break
            usage = Usage(len(tokens), made)
            finish: Finish = "length" if made >= sampling.max_tokens and not stopper.stopped else "stop"
            yield replace(stopper.rest(), finish=finish, usage=usage)

    async def use_adapter(self, adapter: Path | None) -> None:
        """Apply a LoRA adapter to the model from the next generation on; None takes it away.

        Raises ModelError when it cannot be loaded; then the one in use stays.
        """
        async with self._turns.taken():
            await asyncio.to_thread(self.apply_adapter, adapter)

    def apply_adapter(self, adapter: Path | None) -> None:
        """The same at once, for a model that nobody generates with yet."""
        import llama_cpp

        _capture_log(llama_cpp).clear()
        loaded = llama_cpp.llama_adapter_lora_init(self._llama.model, str(adapter).encode()) if adapter else None
        if adapter and not loaded:
            raise ModelError(f"llama.cpp cannot use {str(adapter)!r} as an adapter of {self.name}: {_complaint()}")
        count = 1 if loaded else 0
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded) if loaded else None
        if llama_cpp.llama_set_adapters_lora(self._llama.ctx, adapters, count, (ctypes.c_float * 1)(1.0)):
            raise ModelError(f"llama.cpp cannot apply {str(adapter)!r} to {self.name}.")
        if self._adapter:  # no generation uses it any more
            llama_cpp.llama_adapter_lora_free(self._adapter)
        self._adapter = loaded

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of `messages` as the model reads it."""
        return list(self._llama.tokenize(self.render(messages).encode(), special=True))

    def _parameters(self, sampling: Sampling) -> dict[str, Any]:
        """How `Llama.generate` is to choose tokens. Raises LayerError for a schema that is none."""
        parameters: dict[str, Any] = {"temp": sampling.temperature, "top_p": sampling.top_p, "repeat_penalty": 1.0}
        if sampling.seed is not None:
            parameters["seed"] = sampling.seed
        if sampling.json_schema is not None:
            parameters["grammar"] = _grammar(sampling.json_schema)
        return parameters

    def _pieces(
        self, tokens: list[int], max_tokens: int, parameters: dict[str, Any], cancelled: threading.Event
    ) -> Iterator[Piece]:
        """The blocking generation; runs in the engine's thread."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._abort_when(cancelled)
        self._llama.reset()
        if (seed := parameters.pop("seed", None)) is not None:
            self._llama.set_seed(seed)
        made: list[int] = []
        try:
            for token in self._llama.generate(tokens, **parameters):
                if token in self._ends or cancelled.is_set():
                    return
                text = self._llama.detokenize([token], prev_tokens=tokens + made)
                made.append(token)
                yield Piece(decoder.decode(text), (self._logprob(token),))
                if len(made) >= max_tokens:  # here, or one more token would be computed for nothing
                    return
        except RuntimeError as error:
            if not cancelled.is_set():  # an aborted decode is reported as an error
                raise LayerError(f"llama.cpp stopped: {error}") from error

    def _logprob(self, token: int) -> float:
        """Natural log of the probability that `token` had when it was chosen."""
        import llama_cpp

        pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, (self._llama.n_vocab(),)).astype(np.float64)
        top = logits.max()
        return float(logits[token] - top - np.log(np.exp(logits - top).sum()))

    def _abort_when(self, cancelled: threading.Event) -> None:
        import llama_cpp

        self._abort = llama_cpp.ggml_abort_callback(lambda _: cancelled.is_set())
        llama_cpp.llama_set_abort_callback(self._llama.ctx, self._abort, ctypes.c_void_p(0))

    def _chat_template(self) -> Callable[[list[dict[str, str]]], str]:
        template = self._llama.metadata.get("tokenizer.chat_template")
        if not template:
            return _plain
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        formatter = Jinja2ChatFormatter(
            template=template,
            eos_token=self._text_of(self._llama.token_eos()),
            bos_token="",  # tokenize adds it
        )

        def render(messages: list[dict[str, str]]) -> str:
            try:
                return str(formatter(messages=messages).prompt)  # type: ignore[arg-type]
            except Exception as error:  # templates raise what they like, of roles they do not take for instance
                raise LayerError(f"The chat template of {self.name} does not take these messages: {error}") from error

        return render

    def _control_tokens(self) -> re.Pattern[str]:
        """Matches the text of any control token of the vocabulary."""
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)
        control = [token for token in range(self._llama.n_vocab()) if llama_cpp.llama_vocab_is_control(vocabulary, token)]
        texts = {text for token in control if len(text := self._text_of(token)) > 2}
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def _text_of(self, token: int) -> str:
        if token < 0:
            return ""
        return str(self._llama.detokenize([token], special=True).decode(errors="replace"))


def _plain(messages: list[dict[str, str]]) -> str:
    """For a model without a chat template: texts as they are, an answer to go on with."""
    return "\n\n".join(item["content"] for item in messages) + "\n"


def _grammar(schema: dict[str, Any]) -> Any:
    from llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar

    try:
        return LlamaGrammar.from_json_schema(json.dumps(schema)) if schema else LlamaGrammar.from_string(JSON_GBNF)
    except Exception as error:  # the converter raises KeyError, ValueError, AssertionError and more
        raise LayerError(f"The JSON schema cannot be used: {type(error).__name__}: {error}") from error


def llama_token_eot(llama: Any) -> int:
    """The token that ends a turn, -1 if the vocabulary has none."""
    import llama_cpp

    return int(llama_cpp.llama_vocab_eot(llama_cpp.llama_model_get_vocab(llama.model)))


async def _in_thread(source: Iterator[Piece], cancelled: threading.Event) -> AsyncGenerator[Piece, None]:
    """Run a blocking iterator in the thread; closing this one cancels it and waits for its end.

    Item by item, so that other work of the thread comes in between.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Waiting] = asyncio.Queue()
    ended: Future[None] = Future()

    def step() -> None:
        try:
            item: Waiting = THREAD_END if cancelled.is_set() else next(source, THREAD_END)
        except Exception as error:  # handed to the consumer, which raises it
            item = error
        loop.call_soon_threadsafe(queue.put_nowait, item)  # of a loop that is closed it raises: nobody waits any more
        if isinstance(item, Piece):
            THREAD.submit(step)
        else:
            ended.set_result(None)

    THREAD.submit(step)
    try:
        while (item := await queue.get()) is not THREAD_END:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        cancelled.set()
        # Shielded: whoever closes us must not take the context while the thread still uses it.
        await asyncio.shield(asyncio.wrap_future(ended))


def _complaint() -> str:
    """What llama.cpp complained of first."""
    import llama_cpp

    complaints = _capture_log(llama_cpp)
    return " ".join(complaints[0].split()) if complaints else "it does not say why"


@cache
def _avoid_amx() -> None:
    """Keep weights out of ggml's AMX buffers where it was built with them.

    Its matrix product over Q4_0, Q4_K, Q6_K and Q8_0 ends the process on such processors
    (llama.cpp issue 20824). The setting is in no parameter of `Llama`, only in C's defaults.
    """
    from llama_cpp import llama_cpp as binding

    if b"AMX_INT8 = 1" not in binding.llama_print_system_info():
        return
    defaults = binding.llama_model_default_params

    def without_extra_buffers() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    binding.llama_model_default_params = without_extra_buffers


@cache
def _capture_log(llama_cpp: Any) -> list[str]:
    """Keep llama.cpp's errors in a list instead of letting it write on the terminal."""
    complaints: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _: object) -> None:
        if level >= ERROR_LEVEL and len(complaints) < 20:
            complaints.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    _KEEP_ALIVE.append(keep)
    return complaints


#: ggml's number for errors, and the callbacks that C code still points to.
ERROR_LEVEL = 4
_KEEP_ALIVE: list[object] = []
