"""What the front door takes in: requests as strict models, turned into the cascade's values."""

from __future__ import annotations

from typing import Annotated

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, StringConstraints, field_validator

from kitbash_ray.types import MAX_QUERY_CHARS, Faction, Query, Turn, is_visible, new_query_id

MAX_TURNS = 100
#: Redis's record script ends its words with NUL bytes.
WITHOUT_NUL = r"^[^\x00]*$"


class TurnIn(BaseModel):
    """One earlier message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Annotated[str, StringConstraints(pattern="^(user|assistant)$")]
    text: Annotated[str, StringConstraints(max_length=MAX_QUERY_CHARS, pattern=WITHOUT_NUL)]


class QueryIn(BaseModel):
    """A question and, optionally, its context and limits."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"query": "What is ATP?"}]},
    )

    query: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY_CHARS, pattern=WITHOUT_NUL)
    ] = Field(description="The question.")
    history: tuple[TurnIn, ...] = Field((), max_length=MAX_TURNS, description="What was said before, oldest first.")
    factions: tuple[Faction, ...] = Field(("general",), min_length=1, max_length=3, description="Which knowledge may answer.")
    cartridges: tuple[Annotated[str, StringConstraints(max_length=64, pattern=WITHOUT_NUL)], ...] = Field(
        (), max_length=64, description="Only these cartridges; empty means all of the factions."
    )
    max_error: float | None = Field(None, gt=0, lt=1, description="Share of accepted answers that may be wrong.")
    timeout_s: float | None = Field(None, gt=0, le=600, description="Seconds the answer may take.")

    @field_validator("query")
    @classmethod
    def _visible(cls, text: str) -> str:
        if not is_visible(text):
            raise ValueError("the question has no visible character")
        return text

    def to_query(self) -> Query:
        return Query(
            text=self.query,
            id=new_query_id(),
            history=tuple(Turn(turn.role, turn.text) for turn in self.history),  # type: ignore[arg-type]
            factions=self.factions,
            cartridges=self.cartridges,
            max_error=self.max_error,
            deadline_s=self.timeout_s,
        )


class SubmitIn(QueryIn):
    """A question to be answered later."""

    callback_url: HttpUrl | None = Field(None, description="Where the answer is posted to, over http or https.")


def within_budget(query: Query, budget: float | None) -> Query:
    """Whoever asks may set an error budget for one question; their key's is for the others."""
    return query if budget is None or query.max_error is not None else replace(query, max_error=budget)


class FeedbackIn(BaseModel):
    """What somebody thinks of an answer."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"right": False}]})

    right: bool = Field(description="Whether the answer was right.")


class AdapterIn(BaseModel):
    """The adapter that a layer is to use; null for the bare model."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"name": "house-style"}]})

    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=WITHOUT_NUL)] | None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorOut(BaseModel):
    """Every refusal has this shape, with one sentence that says what is wrong."""

    error: ErrorDetail
