"""What layers 1 and 4 share: an engine that may be missing, and an answer as a stream."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from msgspec.structs import replace

from kitbash_ray.calibration import LayerCalibration
from kitbash_ray.engines.base import Engine, Piece, Sampling
from kitbash_ray.types import Chat, Generation, LayerResult, Message, Query, Source, Usage

#: A model that goes on with a question of its own has answered.
STOP = ("\nQuestion:",)

#: A model that begins like this does not know.
DECLINES = re.compile(r"(i don't know|i do not know|i'm not sure|unknown\W*$)", re.IGNORECASE)


#: What a confidence in generated text is made of; log-probabilities are natural ones.
TOKEN_FEATURES = (
    "mean_logprob",  # of all tokens
    "lowest_logprob",  # of the least expected one
    "first_logprob",  # of the first
    "tokens",  # how many, of sixty-four
)
TOKENS_FOR = frozenset({"mean_logprob", "lowest_logprob", "first_logprob"})


def token_evidence(logprobs: list[float]) -> tuple[float, ...]:
    """The TOKEN_FEATURES of a text; none of one whose engine told no probabilities."""
    if not logprobs:
        return ()
    mean = sum(logprobs) / len(logprobs)
    return tuple(round(value, 4) for value in (mean, min(logprobs), logprobs[0], min(len(logprobs), 64) / 64))


class GenerativeLayer:
    """Answers with a text engine; without one it abstains and says how to configure it."""

    def __init__(
        self,
        name: str,
        engine: Engine | None,
        *,
        missing: str,
        max_tokens: int,
        fit: LayerCalibration | None = None,
    ) -> None:
        """A `fit` that was made with another model is not used."""
        self.name = name
        self.engine = engine
        self._all_fits = fit
        self._missing = missing
        self._max_tokens = max_tokens

    @property
    def unavailable(self) -> str | None:
        """Why there is no engine, or None if there is one."""
        return None if self.engine else self._missing

    def messages(self, query: Query, sources: tuple[Source, ...]) -> tuple[Message, ...]:
        """What the engine is told."""
        raise NotImplementedError

    def grounds(self, so_far: tuple[LayerResult, ...]) -> tuple[Source, ...]:
        """The facts that the answer may rest on, the most relevant first."""
        return ()

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> AsyncGenerator[str | LayerResult, None]:
        if self.engine is None:
            yield LayerResult(self.name, "abstained", reason=self._missing)
            return
        began = time.perf_counter()
        sampling = self._sampling(query)
        if refusal := _cannot(self.engine, sampling):
            yield LayerResult(self.name, "abstained", reason=refusal)
            return
        grounds = self.grounds(so_far)
        sources = await self._fitting(self.engine, query, grounds, sampling.max_tokens)
        if sources is None:
            yield LayerResult(self.name, "abstained", reason=await too_long(self.engine, sampling.max_tokens))
            return
        made = Made(began, self.cost_usd)
        async with aclosing(self.engine.generate(self.messages(query, sources), sampling)) as pieces:
            async for piece in pieces:
                made.take(piece)
                if piece.text:
                    yield piece.text
        yield self._result(query, made, sources, len(grounds) - len(sources))

    def cost_usd(self, usage: Usage) -> float:
        """What a generation cost, in dollars. Nothing on one's own machines."""
        return 0.0

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        """The whole answer at once."""
        async with aclosing(self.stream(query, so_far)) as items:
            async for item in items:
                if isinstance(item, LayerResult):
                    return item
        return LayerResult(self.name, "failed", reason="the engine ended without a result")

    def _sampling(self, query: Query) -> Sampling:
        """As the caller of a chat route wants it, or greedy."""
        chat = query.chat or Chat(())
        return Sampling(
            max_tokens=chat.max_tokens or self._max_tokens,
            stop=chat.stop or STOP,
            temperature=chat.temperature or 0.0,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            seed=chat.seed,
            json_schema=chat.json_schema,
            tools=chat.tools,
            tool_choice=chat.tool_choice,
        )

    async def _fitting(
        self, engine: Engine, query: Query, sources: tuple[Source, ...], max_tokens: int
    ) -> tuple[Source, ...] | None:
        """As many of `sources` as the window has room for, None if not even the question has.

        The least relevant go first.
        """
        room = await engine.context_tokens() - max_tokens
        for kept in range(len(sources), -1, -1):
            if await engine.count_tokens(self.messages(query, sources[:kept])) <= room:
                return sources[:kept]
        return None

    def _result(self, query: Query, made: Made, sources: tuple[Source, ...], left_out: int) -> LayerResult:
        text = made.text.strip()
        directly = bool(query.layers)  # then the model's own words are wanted, whatever they are
        if not text and not directly:
            return LayerResult(self.name, "abstained", reason="the model said nothing", generation=made.generation)
        if not directly and DECLINES.match(text.replace("’", "'")):
            return LayerResult(self.name, "abstained", reason="the model does not know", generation=made.generation)
        evidence = token_evidence(made.logprobs)
        fit = self._fit()
        remarks = [
            "not calibrated for this model: no confidence stated" if fit is None else "",
            f"{left_out} of {left_out + len(sources)} facts left out: the window has no room for them" if left_out else "",
        ]
        return LayerResult(
            self.name,
            "answered",
            text=text,
            # The geometric mean of the tokens' probabilities: raw evidence, no confidence.
            score=math.exp(sum(made.logprobs) / len(made.logprobs)) if made.logprobs else None,
            confidence=fit.confidence(evidence) if fit and evidence else None,
            sources=sources,
            reason="; ".join(filter(None, remarks)) or None,
            evidence=evidence,
            generation=made.generation,
        )

    def _fit(self) -> LayerCalibration | None:
        """The fit for the engine's model; an engine elsewhere tells its model's name only when it is asked."""
        known = self._all_fits
        return known if known and self.engine and known.model == self.engine.name else None


class Made:
    """What has come of a generation."""

    def __init__(self, began: float, cost_usd: Callable[[Usage], float]) -> None:
        self.text = ""
        self.logprobs: list[float] = []
        self.generation = Generation(Usage(0, 0))
        self._began = began
        self._cost_usd = cost_usd

    def take(self, piece: Piece) -> None:
        if self.generation.first_token_ms is None and (piece.text or piece.logprobs):
            waited = round((time.perf_counter() - self._began) * 1000, 3)
            self.generation = replace(self.generation, first_token_ms=waited)
        self.text += piece.text
        self.logprobs += piece.logprobs
        if piece.finish:
            usage = piece.usage or Usage(0, 0)
            self.generation = replace(
                self.generation,
                usage=usage,
                finish=piece.finish,
                tool_calls=piece.tool_calls,
                cost_usd=self._cost_usd(usage),
            )

    def stopped(self, prompt_tokens: int) -> None:
        """Ended before its engine could tell what it cost."""
        self.generation = replace(self.generation, usage=Usage(prompt_tokens, len(self.logprobs)))


def _cannot(engine: Engine, sampling: Sampling) -> str | None:
    """Why the engine cannot do what is asked of it."""
    if sampling.tools and not engine.takes_tools:
        return f"the engine of {engine.name or 'this layer'} cannot call tools; an OpenAI-compatible one can"
    if sampling.json_schema is not None and not engine.keeps_schema:
        return f"the engine of {engine.name or 'this layer'} cannot be held to a JSON schema"
    return None


async def too_long(engine: Engine, max_tokens: int) -> str:
    """The reason of a layer whose model has no room for question and answer."""
    window = await engine.context_tokens()
    return f"the question and an answer of up to {max_tokens} tokens do not fit the model's window of {window} tokens"
