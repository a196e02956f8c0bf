"""Layer 1: a small model that answers from its weights alone, in one short line.

The student that `kitbash distil` trains has learned how the answers of its cartridges begin. As soon
as what it writes belongs to one of them alone, that fact is the answer, whole and cited; what begins
none of them is no answer. Any other model says what it says.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path

from kitbash_ray.calibration import Calibration, LayerCalibration
from kitbash_ray.config import Settings
from kitbash_ray.engines.base import Engine, Piece
from kitbash_ray.engines.llama_cpp import LlamaCpp
from kitbash_ray.engines.openai import OpenAIEngine
from kitbash_ray.layers.generative import DECLINES, GenerativeLayer, Made, too_long
from kitbash_ray.layers.known_answers import KnownAnswers, read_answers
from kitbash_ray.learn.manifest import ANSWERS, MODEL, read_manifest
from kitbash_ray.models import resolve
from kitbash_ray.types import LayerResult, Message, Query, Source

SYSTEM = "Answer in one short sentence. If you do not know the answer, say: I don't know."
CONTEXT_TOKENS = 1024
#: The student that ships. It knows the shipped cartridges.
SHIPPED = Path(__file__).parent.parent / "student"
MISSING = "no model: set BITNET_MODEL to the path of a GGUF file, or BITNET_TYPE=remote and BITNET_HOST"
#: Keys and values in 32 bits (ggml's type 0), as in its training. Rounded to 16 bits, they change 1 of 100 tokens.
EXACT = {"type_k": 0, "type_v": 0}
#: A student is taught general facts only.
FACTION = "general"


class BitnetLayer(GenerativeLayer):
    """A question-to-answer model. It hears the question alone: neither facts nor the conversation."""

    def messages(self, query: Query, sources: tuple[Source, ...]) -> tuple[Message, ...]:
        return Message("system", SYSTEM), Message("user", query.text)


class StudentLayer(BitnetLayer):
    """A student, and the facts it was taught that are still in the cartridges."""

    def __init__(
        self, engine: Engine, taught: Iterable[Source], *, max_tokens: int, fit: LayerCalibration | None = None
    ) -> None:
        super().__init__("bitnet", engine, missing="", max_tokens=max_tokens, fit=fit)
        self._taught = tuple(taught)
        self._known = KnownAnswers(self._taught)

    def follow(self, current: Iterable[tuple[str, str]]) -> None:
        """From now on only facts are answers whose id and text, word for word, are among `current`."""
        there = frozenset(current)
        self._known = KnownAnswers([source for source in self._taught if (source.fact_id, source.text) in there])

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> AsyncGenerator[str | LayerResult, None]:
        known = self._known
        if refusal := self._not_for(query, known):
            yield LayerResult(self.name, "abstained", reason=refusal)
            return
        assert self.engine is not None
        made, said = Made(time.perf_counter(), self.cost_usd), None
        messages, sampling = self.messages(query, ()), self._sampling(query)
        prompt_tokens = await self.engine.count_tokens(messages)
        if prompt_tokens + sampling.max_tokens > await self.engine.context_tokens():
            yield LayerResult(self.name, "abstained", reason=await too_long(self.engine, sampling.max_tokens))
            return
        async with aclosing(self.engine.generate(messages, sampling)) as pieces:
            async for piece in pieces:
                made.take(piece)
                if said := self._said(made.text.lstrip(), piece, known):
                    break
        made.stopped(prompt_tokens)
        if isinstance(said, str):
            yield LayerResult(self.name, "abstained", reason=said, generation=made.generation)
        elif said and query.cartridges and said.cartridge not in query.cartridges:
            yield LayerResult(self.name, "abstained", reason="what it would say is not in the cartridges that were asked for")
        elif said:
            made.text = said.text
            yield said.text
            yield self._result(query, made, (said,), 0)

    def _not_for(self, query: Query, known: KnownAnswers) -> str | None:
        """Why the student is not asked."""
        if FACTION not in query.factions:
            return "the student knows general facts only"
        if query.history:
            return "the student does not read a conversation"
        if query.chat and (query.chat.tools or query.chat.json_schema is not None):
            return "the student can neither call tools nor keep to a JSON schema"
        return None if len(known) else "the student was taught none of these cartridges"

    def _said(self, text: str, piece: Piece, known: KnownAnswers) -> Source | str | None:
        """The fact that `text` has become the beginning of, why it is none, or None while it is open."""
        if source := known.complete(text):
            return source
        if piece.finish:
            return "the model does not know" if DECLINES.match(text) else "the model ended before its answer was clear"
        declining = "unknown".startswith(text.lower()) or DECLINES.match(text)
        if not text or declining or known.begins_any(text):
            return None
        return "the model began an answer that no fact gives"


def open_bitnet(settings: Settings, calibration: Calibration) -> BitnetLayer:
    """The layer of the settings. Raises ModelError when the configured model cannot be loaded."""
    fit = calibration.layers.get("bitnet")
    if settings.bitnet_type == "local" and not settings.bitnet_model and (folder := _student(settings)):
        return open_student(folder, max_tokens=settings.bitnet_max_tokens, fit=fit)
    return BitnetLayer("bitnet", _engine(settings), missing=MISSING, max_tokens=settings.bitnet_max_tokens, fit=fit)


def open_student(folder: Path, *, max_tokens: int, fit: LayerCalibration | None = None) -> StudentLayer:
    """The student in `folder`.

    Raises ModelError when it cannot be loaded.
    """
    return student_layer(folder, read_manifest(folder).name, max_tokens=max_tokens, fit=fit)


def student_layer(folder: Path, name: str, *, max_tokens: int, fit: LayerCalibration | None = None) -> StudentLayer:
    """The same for a student that has no manifest yet."""
    # One thread: for so small a model more only wait for each other, and beside other layers for a free core.
    engine = LlamaCpp(folder / MODEL, context_tokens=CONTEXT_TOKENS, threads=1, name=name, **EXACT)
    return StudentLayer(engine, read_answers(folder / ANSWERS), max_tokens=max_tokens, fit=fit)


def _student(settings: Settings) -> Path | None:
    """The folder of the student that `kitbash distil` made here, else of the one that ships."""
    return next((folder for folder in (settings.state_dir / "student", SHIPPED) if (folder / MODEL).is_file()), None)


def _engine(settings: Settings) -> Engine | None:
    if settings.bitnet_type == "remote":
        return OpenAIEngine(
            settings.bitnet_url, model=settings.bitnet_model or "", key=settings.bitnet_key, key_setting="BITNET_KEY"
        )
    if settings.bitnet_model:
        return LlamaCpp(resolve(settings.bitnet_model, settings.cache_dir), context_tokens=CONTEXT_TOKENS)
    return None
