"""What travels between processes comes back as it was."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from pydantic import ValidationError

from kitbash_ray import types
from kitbash_ray.types import Answer, Event, LayerResult, Query, Source, Step, Turn, decode, encode, encode_event, new_query_id

SOURCE = Source("bio", "bio:atp", "ATP „carries“ energy 🦠.", 0.9, "a book", "2")
QUERY = Query(
    'What is\n"ATP"? 🦠 \'; --', "q_1", (Turn("user", "hi"), Turn("assistant", "")), ("fiction",), ("bio",), 0.01, 2.5, 1.25
)
RESULT = LayerResult("grain", "answered", "text", 0.1, 0.2, (SOURCE, SOURCE), "why", 1.5)
STEP = Step("grain", "timeout", 0.5, 1.0, "late")
ANSWER = Answer("q_1", "?", "answered", "yes", "grain", 0.9, (SOURCE,), (STEP,), 3.0, "why", "maybe", "fixed/x", True)
EVENT = Event("q_1", 3, 1.5, "layer.finished", "grain", QUERY, RESULT, "delta", "why", ANSWER)

FULL = [SOURCE, QUERY, RESULT, STEP, ANSWER, EVENT, Turn("user", "hi")]
BARE = [
    Source("bio", "bio:atp", "", 0.0),
    Query("x"),
    LayerResult("grain", "abstained"),
    Step("grain", "failed"),
    Answer("q_1", "?", "abstained"),
    Event("q_1", 0, 0.0, "query.received"),
]
VALUES = [
    pytest.param(value, id=type(value).__name__ + kind) for kind, group in (("", FULL), ("-bare", BARE)) for value in group
]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("value", VALUES)
def test_a_value_comes_back_from_json_as_it_was(value: object, whole: bool) -> None:
    assert decode(type(value), encode(value, whole=whole)) == value


@pytest.mark.parametrize("value", VALUES)
def test_a_value_survives_pickle_and_cannot_be_changed(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)  # type: ignore[arg-type]


def test_every_type_that_travels_is_tried_here() -> None:
    travelling = {kind for kind in vars(types).values() if dataclasses.is_dataclass(kind) and kind.__module__ == types.__name__}
    assert travelling == {type(value) for value in FULL}


def test_absent_members_are_left_out_unless_the_whole_is_asked_for() -> None:
    assert b"null" not in encode(BARE[4])
    assert b'"confidence":null' in encode(BARE[4], whole=True)


def test_json_has_one_line_whatever_is_said() -> None:
    assert b"\n" not in encode(QUERY)


@pytest.mark.parametrize("event", [EVENT, BARE[5], dataclasses.replace(EVENT, text='„ü“ 🦠\n\x00\\ "quoted"', reason="\u2028")])
def test_an_event_put_together_from_encoded_members_is_the_event(event: Event) -> None:
    members = (
        event.query and encode(event.query),
        event.result and encode(event.result),
        event.answer and encode(event.answer),
    )
    line = encode_event(event, *members)
    assert decode(Event, line) == event
    assert b"\0" not in line
    assert b"\n" not in line


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"query_id": "q"}', b'{"query_id":"q","query":"x","status":"sure"}']
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(Answer, data)


def test_query_ids_differ() -> None:
    ids = {new_query_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(name) == 18 and name.startswith("q_") for name in ids)
