"""The shapes of OpenAI's API: requests in, as strict as its clients allow; replies out.

Fields that change nothing here (`user`, `metadata`, ...) are taken and ignored, as servers of this
API do; what would change the answer and cannot be done is refused with a sentence.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import to_builtins
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from kitbash_ray.errors import InvalidQuery
from kitbash_ray.http_types import WITHOUT_NUL
from kitbash_ray.types import LAYER_NUMBERS, MAX_QUERY_CHARS, Answer, Chat, Faction, Message, Query, Turn, is_visible

MODEL = "kitbash"
EMBEDDING_MODEL = "kitbash/embedding"
#: Layers that go on from a prompt; a request that only a model can serve goes to them, in this order.
MODELS = ("kobold", "cloud")
#: A system text longer than this, in characters, says more than to be helpful: no grain can obey it.
LONG_SYSTEM = 160
#: Texts of one request for embeddings, and the characters of each.
MAX_INPUTS, MAX_INPUT_CHARS = 256, 100_000
Text = Annotated[str, StringConstraints(pattern=WITHOUT_NUL)]


class _In(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class Part(_In):
    """A part of a message. Only text can be read here."""

    type: str
    text: Text | None = None


class MessageIn(_In):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None
    tool_call_id: str | None = None

    def to_message(self) -> Message:
        role = "system" if self.role == "developer" else self.role
        return Message(role, self.text(), self.tool_calls or (), self.tool_call_id)

    def text(self) -> str:
        if isinstance(self.content, list):
            if other := next((part.type for part in self.content if part.text is None), None):
                raise InvalidQuery(f"A part of a message is of the type {other!r}; only text can be read here.")
            return "\n".join(part.text or "" for part in self.content)
        return self.content or ""


class Extension(BaseModel):
    """What OpenAI's API has no field for; clients send it as `extra_body={"kitbash": {...}}`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_error: float | None = Field(None, gt=0, lt=1)
    factions: tuple[Faction, ...] = Field(("general",), min_length=1, max_length=3)
    cartridges: tuple[Text, ...] = Field((), max_length=64)
    timeout_s: float | None = Field(None, gt=0, le=600)


class StreamOptions(_In):
    include_usage: bool = False


class Sampled(_In):
    """What chat completions and completions share."""

    model: str = MODEL
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: Text | tuple[Text, ...] | None = None
    logprobs: bool | int | None = None
    kitbash: Extension = Extension()

    @field_validator("n")
    @classmethod
    def _one(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError("one answer is given to a question; leave n at 1")
        return value

    @field_validator("logprobs")
    @classmethod
    def _no_logprobs(cls, value: bool | int | None) -> bool | int | None:
        if value:
            raise ValueError("log-probabilities are not passed on; the confidence is in `kitbash`")
        return value

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()


class JsonSchema(_In):
    name: str = "answer"
    # A name of its own: `schema` is a method of every model.
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(_In):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def to_schema(self) -> dict[str, Any] | None:
        if self.type == "text":
            return None
        return self.json_schema.schema_ if self.json_schema else {}


class ChatIn(Sampled):
    """A request for a chat completion."""

    messages: list[MessageIn] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    response_format: ResponseFormat | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: Any = None
    modalities: list[str] | None = None

    @model_validator(mode="after")
    def _only_text(self) -> ChatIn:
        if self.modalities and self.modalities != ["text"]:
            raise ValueError("only text can be answered with")
        return self

    def to_query(self) -> Query:
        """Raises InvalidQuery when there is no question in it."""
        messages = tuple(message.to_message() for message in self.messages)
        at = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
        if at < 0 or not is_visible(messages[at].content):
            raise InvalidQuery("There is no question: the last message of the role `user` has no visible character.")
        chat = Chat(
            messages,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stops(),
            json_schema=self.response_format.to_schema() if self.response_format else None,
            tools=self.tools or (),
            tool_choice=self.tool_choice,
        )
        text = messages[at].content.strip()
        history = tuple(Turn(m.role, m.content) for m in messages[:at] if m.role in ("user", "assistant"))
        needs_model = _needs_model(chat, last_is_question=at == len(messages) - 1) or len(text) > MAX_QUERY_CHARS
        return _query(self, text[:MAX_QUERY_CHARS], chat, history, needs_model=needs_model)


def _needs_model(chat: Chat, *, last_is_question: bool) -> bool:
    """Whether only a model can do what the caller wants: no grain obeys a schema, a tool or long instructions."""
    system = sum(len(message.content) for message in chat.messages if message.role == "system")
    return bool(chat.tools or chat.json_schema is not None or system > LONG_SYSTEM or not last_is_question)


class CompletionIn(Sampled):
    """A request for a completion: the prompt is the question."""

    prompt: Text | list[Text]
    suffix: str | None = None
    echo: bool | None = False

    def to_query(self) -> Query:
        """Raises InvalidQuery when there is no single prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1 or not is_visible(prompts[0]):
            raise InvalidQuery("Send one prompt with something to see in it.")
        if self.suffix or self.echo:
            raise InvalidQuery("`suffix` and `echo` cannot be done here.")
        text = prompts[0].strip()
        chat = Chat(
            (Message("user", text),),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stops(),
        )
        return _query(self, text[:MAX_QUERY_CHARS], chat, (), needs_model=len(text) > MAX_QUERY_CHARS)


def _query(asked: Sampled, text: str, chat: Chat, history: tuple[Turn, ...], *, needs_model: bool) -> Query:
    name = asked.model.removeprefix(f"{MODEL}/")
    layers = (name,) if name in LAYER_NUMBERS else MODELS if needs_model else ()
    return Query(
        text,
        history=history,
        factions=asked.kitbash.factions,
        cartridges=asked.kitbash.cartridges,
        max_error=asked.kitbash.max_error,
        deadline_s=asked.kitbash.timeout_s,
        layers=layers,
        chat=chat,
    )


class EmbeddingsIn(_In):
    """A request for embeddings."""

    input: Text | list[Text]
    model: str = EMBEDDING_MODEL
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def texts(self) -> list[str]:
        """Raises InvalidQuery when there are none, or too many."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not 0 < len(texts) <= MAX_INPUTS or any(not text or len(text) > MAX_INPUT_CHARS for text in texts):
            raise InvalidQuery(
                f"Send 1 to {MAX_INPUTS} texts, none of them empty or longer than {MAX_INPUT_CHARS:,} characters."
            )
        return texts


def extension(answer: Answer) -> dict[str, Any]:
    """What Kitbash knows of an answer beside its text."""
    return {
        "query_id": answer.query_id,
        "status": answer.status,
        "layer": answer.layer,
        "confidence": answer.confidence,
        "sources": to_builtins(answer.sources),
        "path": to_builtins(answer.path),
        "latency_ms": answer.latency_ms,
        "reason": answer.reason,
        "candidate": answer.candidate,
        "policy": answer.policy,
        "calibration": answer.calibration,
        "cost_usd": answer.generation.cost_usd if answer.generation else 0.0,
        "recorded": answer.recorded,
    }


def headers(answer: Answer) -> dict[str, str]:
    """The same for whoever looks at headers only; ASCII."""
    found = {
        "X-Kitbash-Query-Id": answer.query_id,
        "X-Kitbash-Status": answer.status,
        "X-Kitbash-Layer": answer.layer or "",
        "X-Kitbash-Confidence": "" if answer.confidence is None else f"{answer.confidence:.4f}",
        "X-Kitbash-Sources": ",".join(source.fact_id for source in answer.sources),
        "X-Kitbash-Path": ",".join(f"{step.layer}:{step.outcome}" for step in answer.path),
    }
    return {name: value.encode("ascii", "replace").decode() for name, value in found.items()}


def words(answer: Answer) -> str:
    """What a chat shows: the answer, or that there is none. The best guess stays in the extension."""
    return answer.answer or "" if answer.status == "answered" else "I don't know."


def usage(answer: Answer) -> dict[str, int]:
    """Tokens of the model that answered; none when no model had to."""
    spent = answer.generation.usage if answer.generation else None
    read, wrote = (spent.prompt_tokens, spent.completion_tokens) if spent else (0, 0)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def finish_reason(answer: Answer) -> str:
    return answer.generation.finish if answer.generation and answer.status == "answered" else "stop"


def embeddings(vectors: npt.NDArray[np.float32], asked: EmbeddingsIn, tokens: int) -> dict[str, Any]:
    """The reply with `vectors`, shape (texts, dimensions), float32."""
    return {
        "object": "list",
        "model": asked.model,
        "data": [
            {"object": "embedding", "index": at, "embedding": _encoded(vector, asked.encoding_format)}
            for at, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _encoded(vector: npt.NDArray[np.float32], kind: str) -> str | list[float]:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if kind == "base64" else vector.tolist()


def model_list(layers: Sequence[str], created: int) -> list[dict[str, Any]]:
    """The cascade, each of its layers, and the embedding model."""
    names = [MODEL, *(f"{MODEL}/{layer}" for layer in layers), EMBEDDING_MODEL]
    return [{"id": name, "object": "model", "created": created, "owned_by": "kitbash"} for name in names]
