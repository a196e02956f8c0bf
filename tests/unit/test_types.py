"""What travels between processes comes back as it was."""

from __future__ import annotations

import pickle

import msgspec
import pytest
from msgspec.structs import fields, replace

from kitbash_ray import types
from kitbash_ray.types import (
    Answer,
    Chat,
    DeadLetter,
    Event,
    Generation,
    Job,
    LayerResult,
    Message,
    Query,
    Source,
    Step,
    Turn,
    Usage,
    decode,
    encode,
    new_query_id,
)

SOURCE = Source("bio", "bio:atp", "ATP „carries“ energy 🦠.", 0.9, "a book", "2")
QUERY = Query(
    'What is\n"ATP"? 🦠 \'; --', "q_1", (Turn("user", "hi"), Turn("assistant", "")), ("fiction",), ("bio",), 0.01, 2.5, 1.25,
    attempt=2,
)  # fmt: skip
RESULT = LayerResult("grain", "answered", "text", 0.1, 0.2, (SOURCE, SOURCE), "why", 1.5)
STEP = Step("grain", "timeout", 0.5, 1.0, "late")
ANSWER = Answer("q_1", "?", "answered", "yes", "grain", 0.9, (SOURCE,), (STEP,), 3.0, "why", "maybe", "fixed/x", True)
EVENT = Event("q_1", 3, 1.5, "layer.finished", "grain", QUERY, RESULT, "delta", "why", ANSWER, attempt=2)
JOB = Job(QUERY, "http://localhost/told", "digest")
LETTER = DeadLetter("q_1", "why", 3, 1.5, JOB, 4)

MESSAGE = Message("assistant", "", ({"id": "call_1", "function": {"name": "look", "arguments": "{}"}},), "call_1")
USAGE = Usage(10, 3)
CHAT = Chat((MESSAGE,), 5, 0.5, 0.9, 7, ("\n",), {"type": "object"}, ({"type": "function"},), "auto")
GENERATION = Generation(USAGE, "length", 1.5, ({"id": "call_1"},), 0.01)

FULL = [SOURCE, QUERY, RESULT, STEP, ANSWER, EVENT, Turn("user", "hi"), MESSAGE, USAGE, CHAT, GENERATION, JOB, LETTER]
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


@pytest.mark.parametrize("value", VALUES)
def test_a_value_comes_back_from_json_as_it_was(value: object) -> None:
    assert decode(type(value), encode(value)) == value


@pytest.mark.parametrize("value", VALUES)
def test_a_value_survives_pickle_and_cannot_be_changed(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(AttributeError):
        setattr(value, fields(value)[0].name, None)  # type: ignore[arg-type]


def test_every_type_that_travels_is_tried_here() -> None:
    structs = {kind for kind in vars(types).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)}
    travelling = {kind for kind in structs if kind.__module__ == types.__name__}
    assert travelling == {type(value) for value in FULL}


def test_an_answer_has_all_its_members_and_an_event_only_those_it_has() -> None:
    assert b'"confidence":null' in encode(BARE[4])
    assert b"null" not in encode(BARE[5])


def test_json_has_one_line_whatever_is_said() -> None:
    assert b"\n" not in encode(QUERY)


def test_json_holds_no_nul_which_ends_words_in_the_record_script() -> None:
    event = replace(EVENT, text='„ü“ 🦠\n\x00\\ "quoted"', reason="\u2028")
    assert b"\0" not in encode(event)
    assert decode(Event, encode(event)) == event


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"query_id": "q"}', b'{"query_id":"q","query":"x","status":"sure"}']
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(Answer, data)


def test_query_ids_differ() -> None:
    ids = {new_query_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(name) == 18 and name.startswith("q_") for name in ids)
