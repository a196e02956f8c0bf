"""What layers 1 and 4 share: an engine that may be missing, and an answer as a stream."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from kitbash_ray.calibration import LayerCalibration
from kitbash_ray.engines.base import Engine
from kitbash_ray.types import LayerResult, Query, Source

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
        self._fit = fit if fit and engine and fit.model == engine.name else None
        self.engine = engine
        self._missing = missing
        self._max_tokens = max_tokens

    @property
    def unavailable(self) -> str | None:
        """Why there is no engine, or None if there is one."""
        return None if self.engine else self._missing

    def prompt(self, engine: Engine, query: Query, sources: tuple[Source, ...]) -> str:
        """The text that the engine goes on from."""
        raise NotImplementedError

    def grounds(self, so_far: tuple[LayerResult, ...]) -> tuple[Source, ...]:
        """The facts that the answer may rest on."""
        return ()

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> AsyncGenerator[str | LayerResult, None]:
        if self.engine is None:
            yield LayerResult(self.name, "abstained", reason=self._missing)
            return
        sources = self.grounds(so_far)
        prompt = self.prompt(self.engine, query, sources)
        text = ""
        logprobs: list[float] = []
        room = self.engine.context_tokens - self._max_tokens
        if self.engine.count_tokens(prompt) > room:
            yield LayerResult(
                self.name,
                "abstained",
                reason=f"the question does not fit the model's window of {self.engine.context_tokens} tokens",
            )
            return
        pieces = self.engine.generate(prompt, max_tokens=self._max_tokens, stop=("\nQuestion:",))
        async with aclosing(pieces):
            async for piece in pieces:
                text += piece.text
                logprobs += piece.logprobs
                if piece.text:
                    yield piece.text
        yield self._result(text.strip(), logprobs, sources)

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> LayerResult:
        """The whole answer at once."""
        async with aclosing(self.stream(query, so_far)) as items:
            async for item in items:
                if isinstance(item, LayerResult):
                    return item
        return LayerResult(self.name, "failed", reason="the engine ended without a result")

    def _result(self, text: str, logprobs: list[float], sources: tuple[Source, ...]) -> LayerResult:
        if not text:
            return LayerResult(self.name, "abstained", reason="the model said nothing")
        if DECLINES.match(text.replace("’", "'")):
            return LayerResult(self.name, "abstained", reason="the model does not know")
        evidence = token_evidence(logprobs)
        return LayerResult(
            self.name,
            "answered",
            text=text,
            # The geometric mean of the tokens' probabilities: raw evidence, no confidence.
            score=math.exp(sum(logprobs) / len(logprobs)) if logprobs else None,
            confidence=self._fit.confidence(evidence) if self._fit and evidence else None,
            sources=sources,
            reason=None if self._fit else "not calibrated for this model: no confidence stated",
            evidence=evidence,
        )
