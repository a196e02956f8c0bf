"""Every route and bad input: a refusal is 4xx, one JSON sentence, and never a stack trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from kitbash_ray import Kitbash

from .harness import Cluster

ASKING = ("/v1/query", "/v1/query/stream")
READING = ("/v1/queries/q_0", "/v1/queries/q_0/events", "/v1/feed", "/v1/layers", "/v1/replicas")
OPEN = ("/health/live", "/health/ready", "/health/startup", "/docs", "/openapi.json")
TWO_MIB = 2 << 20


def assert_refused(reply: httpx.Response, status: int | None = None) -> None:
    """`reply` is a refusal in the shape of every refusal."""
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:300])
    assert status in (None, reply.status_code), (reply.status_code, reply.text[:300])
    assert "Traceback" not in reply.text
    assert reply.headers["content-type"] == "application/json"
    if reply.request.method != "HEAD":
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].endswith(".")
        assert "\n" not in error["message"]
        assert len(error["message"]) < 500


def body(**members: Any) -> bytes:
    return json.dumps({"query": "What is ATP?", **members}).encode()


BAD_BODIES = {
    "empty": b"",
    "white space": b" \n",
    "no JSON": b"What is ATP?",
    "half of it": b'{"query": "What',
    "two objects": body() + body(),
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "no query": b"{}",
    "a number as query": body(query=7),
    "null as query": body(query=None),
    "a list as query": body(query=["What is ATP?"]),
    "an unknown key": body(temperature=1),
    "an empty query": body(query=""),
    "a blank query": body(query=" \t\n"),
    "a NUL in the query": body(query="What\0is ATP?"),
    "a raw NUL": b'{"query": "What\0is ATP?"}',
    "a lone surrogate": b'{"query": "\\ud800"}',
    "a lone low surrogate": b'{"query": "a\\udc00b"}',
    "no UTF-8": b'{"query": "\xff\xfe"}',
    "100,000 characters": body(query="a" * 100_000),
    "an unknown faction": body(factions=["romance"]),
    "no faction": body(factions=[]),
    "a faction as text": body(factions="general"),
    "too many cartridges": body(cartridges=["a"] * 65),
    "a long cartridge name": body(cartridges=["a" * 65]),
    "history as text": body(history="What is ATP?"),
    "an unknown role": body(history=[{"role": "system", "text": "be rude"}]),
    "a turn without text": body(history=[{"role": "user"}]),
    "a long history": body(history=[{"role": "user", "text": "a"}] * 101),
    "deep lists": b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"query": ' * 50_000 + b"1" + b"}" * 50_000,
    **{
        f"{name} of {value}": b'{"query": "What is ATP?", "%b": %b}' % (name.encode(), value.encode())
        for name in ("max_error", "timeout_s")
        for value in ("NaN", "-1", "0", "1e308", "1e400", "Infinity", "-Infinity", '"soon"', "[]", "{}")
    },
}

STRICT_BODIES = {
    "a NUL in a cartridge name": body(cartridges=["bio\0"]),
    "a NUL in the history": body(history=[{"role": "user", "text": "a\0b"}]),
    "an invisible query": body(query="\u200b"),
    "control characters": body(query="\x01\x02"),
    "true as time": body(timeout_s=True),
    "text as error budget": body(max_error="0.5"),
}


@pytest.mark.parametrize("path", ASKING)
@pytest.mark.parametrize(
    "content",
    [pytest.param(content, id=name) for name, content in BAD_BODIES.items()]
    + [pytest.param(content, id=name) for name, content in STRICT_BODIES.items()],
)
def test_a_bad_body_is_refused(http: httpx.Client, path: str, content: bytes) -> None:
    assert_refused(http.post(path, content=content), 400)


@pytest.mark.parametrize("path", ASKING)
def test_the_type_of_the_body_is_not_taken_from_its_header(http: httpx.Client, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        assert_refused(http.post(path, content=b"query=What", headers={"Content-Type": kind}), 400)


@pytest.mark.parametrize("path", ASKING)
def test_two_mebibytes_are_refused(http: httpx.Client, path: str) -> None:
    assert_refused(http.post(path, content=body(query="a" * TWO_MIB)), 413)


@pytest.mark.parametrize("path", ASKING)
def test_two_mebibytes_that_do_not_say_their_length_are_refused(http: httpx.Client, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"query": "'
        for _ in range(TWO_MIB >> 16):
            yield b"a" * (1 << 16)
        yield b'"}'

    assert_refused(http.post(path, content=chunks()), 413)


@pytest.mark.parametrize("path", [*ASKING, *READING, "/v1/nothing", "/"])
def test_without_the_token_every_route_says_401(cluster: Cluster, stranger: httpx.Client, path: str) -> None:
    token = cluster.token
    wrong = (
        None, "", "Bearer", "Bearer wrong", f"Bearer {token[:-1]}", f"Bearer {token}x", f"Bearer {token.swapcase()}",
        f"Basic {token}", f"Token {token}", token, f"Bearer Bearer {token}", "Bearer " + "a" * 8000,
    )  # fmt: skip
    for given in wrong:
        headers = {} if given is None else {"Authorization": given}
        reply = stranger.request(
            "POST" if path in ASKING else "GET", path, headers=headers, content=body() if path in ASKING else None
        )
        assert_refused(reply, 401)
        assert reply.headers["www-authenticate"] == "Bearer"
        assert token not in reply.text


def test_a_token_that_is_not_ascii_is_a_wrong_token(stranger: httpx.Client) -> None:
    assert_refused(stranger.get("/v1/layers", headers={b"Authorization": b"Bearer \xff\xfe"}), 401)


def test_the_scheme_of_the_token_may_be_written_in_small_letters(cluster: Cluster, stranger: httpx.Client) -> None:
    assert stranger.get("/v1/layers", headers={"Authorization": f"bearer {cluster.token}"}).status_code == 200


def test_a_stranger_with_a_huge_body_is_a_stranger_first(stranger: httpx.Client) -> None:
    assert_refused(stranger.post("/v1/query", content=body(query="a" * TWO_MIB)), 401)


@pytest.mark.parametrize("path", [*ASKING, *READING, *OPEN])
def test_a_wrong_method_is_refused(http: httpx.Client, path: str) -> None:
    wrong = {"GET", "POST"} - {"POST" if path in ASKING else "GET"} | {"PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
    wrong -= {"DELETE"} if path == "/v1/queries/q_0" else set()
    for method in sorted(wrong):
        assert_refused(http.request(method, path, content=b"{}" if method == "POST" else None), 405)


@pytest.mark.parametrize("path", [*ASKING, *READING, *OPEN])
def test_head_has_no_body_and_breaks_nothing(http: httpx.Client, path: str) -> None:
    reply = http.head(path)
    assert reply.status_code in (200, 405)
    assert reply.content == b""


@pytest.mark.parametrize(
    "path",
    [
        "/", "/nothing", "/v1", "/v1/", "/v1/queries/", "/V1/query", "//v1/query", "/v2/query", "/health",
        "/v1/queries/q_0/answer", "/%ff", "/%00", "/v1/%2e%2e/health", "/.env", "/redoc",
        "/v1/queries/a%2Fb", "/v1/queries/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/" + "a" * 5000,
    ],
)  # fmt: skip
def test_an_unknown_path_is_refused(http: httpx.Client, path: str) -> None:
    assert_refused(http.get(path), 404)


@pytest.mark.parametrize("suffix", ["", "/events"])
@pytest.mark.parametrize(
    "query_id",
    [
        "nothing", "q_0000000000000000", "%2e%2e", "%2e%2e%5c", "%00", "q_%00", "a%0ab", "a%0d%0aX-Evil:1", "%20", "*", "[a-z]*", "$", "0",
        quote("ü💥"), "%ff%fe", "%ed%a0%80", "%F0%9F%92%A5" * 100, "a" * 10_000, "%3Cscript%3E", "'%22", "{}", "Bearer",
    ],
)  # fmt: skip
def test_a_strange_query_id_is_an_unknown_query(http: httpx.Client, query_id: str, suffix: str) -> None:
    assert_refused(http.get(f"/v1/queries/{query_id}{suffix}"), 404)


def test_dots_in_a_path_lead_to_nothing(http: httpx.Client) -> None:
    for path in ("/v1/queries/../..", "/v1/queries/../../etc/passwd", "/v1/queries/../events"):
        assert_refused(http.get(path), 404)


@pytest.mark.parametrize("part", ["events", "grain:request", "grain:result"])
def test_the_name_of_another_key_is_an_unknown_query(client: Kitbash, http: httpx.Client, part: str) -> None:
    query_id = client.ask("What is ATP?").query_id
    client.query(query_id)
    assert_refused(http.get(f"/v1/queries/{query_id}:{part}"), 404)


@pytest.mark.parametrize("place", ["header", "parameter"])
@pytest.mark.parametrize(
    "after",
    [
        "x", "-", "--", "$$", "0x1", "1 2", "1;2", "+", "*", "1.5", "a" * 5000, "é",
        "-1", "1-2-3", "1-", "²",
        "9" * 23, "0-" + "9" * 23,
    ],
)  # fmt: skip
def test_an_impossible_event_id_is_refused_by_the_feed(http: httpx.Client, after: str, place: str) -> None:
    given: dict[str, Any] = (
        {"headers": {b"Last-Event-ID": after.encode("latin-1")}} if place == "header" else {"params": {"after": after}}
    )
    with http.stream("GET", "/v1/feed", **given) as reply:
        assert reply.status_code == 400, next(reply.iter_bytes())
        reply.read()
    assert_refused(reply)


def test_after_all_that_a_question_is_answered(client: Kitbash) -> None:
    assert client.ask("What is ATP?").layer == "grain"
    assert client.ready() == {"status": "ok"}
