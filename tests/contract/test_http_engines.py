"""What both engines over HTTP do with servers that are there, away, wrong, slow or broken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from kitbash_ray.engines.base import Engine, Piece, Sampling
from kitbash_ray.engines.koboldcpp import KoboldCpp
from kitbash_ray.engines.openai import OpenAIEngine
from kitbash_ray.errors import ConfigError, LayerError, LayerUnavailable
from kitbash_ray.types import Message

from .bad_servers import BadServer, dripping, events, reply, serving, stream
from .engine_servers import WINDOW, koboldcpp_server, openai_server

Open = Callable[[str], Engine]

HTML = "<!doctype html><html><body><h1>It works!</h1></body></html>"
#: A good stream of each engine that says "to be".
CHUNKS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "to"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": " bé"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    "[DONE]",
]
TOKENS = [
    {"token": "to", "finish_reason": None},
    {"token": " bé", "finish_reason": None},
    {"token": "", "finish_reason": "stop"},
]


@pytest.fixture(params=[OpenAIEngine, KoboldCpp], ids=["openai", "koboldcpp"])
def opened(request: pytest.FixtureRequest) -> Open:
    kind = request.param
    return lambda url, **options: kind(url, **{"context_tokens": WINDOW} | options)


@pytest.fixture
def good(opened: Open) -> list[Any]:
    return CHUNKS if isinstance(opened("http://localhost"), OpenAIEngine) else TOKENS


@pytest.fixture(scope="module")
def urls(tiny_gguf: Path) -> Iterator[dict[str, str]]:
    with koboldcpp_server(tiny_gguf) as kobold, openai_server(tiny_gguf) as openai:
        yield {"openai": openai, "koboldcpp": kobold}


@pytest.fixture
async def engine(opened: Open, urls: dict[str, str]) -> AsyncIterator[Engine]:
    """Either engine over a real server."""
    kind = "openai" if isinstance(opened("http://localhost"), OpenAIEngine) else "koboldcpp"
    engine = opened(urls[kind])
    yield engine
    await engine.aclose()


async def pieces_of(engine: Engine, prompt: str = "What is ATP?", max_tokens: int = 16, **sampling: Any) -> list[Piece]:
    messages = (Message("system", "Be brief."), Message("user", prompt))
    async with aclosing(engine.generate(messages, Sampling(max_tokens, **sampling))) as pieces:
        return [piece async for piece in pieces]


async def text_of(engine: Engine, prompt: str = "What is ATP?", max_tokens: int = 16, **sampling: Any) -> str:
    return "".join(piece.text for piece in await pieces_of(engine, prompt, max_tokens, **sampling))


async def refusal(engine: Engine) -> LayerError:
    """The error of a generation; in one sentence, whatever it is."""
    with pytest.raises(LayerError) as raised:
        await asyncio.wait_for(text_of(engine), 20)
    await engine.aclose()
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)
    assert len(str(raised.value)) < 400
    return raised.value


# --- a server that is there


async def test_the_same_prompt_gives_the_same_text(engine: Engine) -> None:
    first = await text_of(engine)
    await text_of(engine, "something else in between")
    assert first == await text_of(engine)
    assert first


async def test_the_last_piece_says_how_the_text_ended_and_what_it_cost(engine: Engine) -> None:
    (*others, last) = await pieces_of(engine, max_tokens=7)
    assert last.finish == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == 7
    assert last.usage.prompt_tokens > 20
    assert all(piece.finish is None and piece.usage is None for piece in others)


async def test_a_stop_sequence_cuts_the_text_and_is_not_shown(engine: Engine) -> None:
    whole = await text_of(engine)
    stop = whole[10:16]
    (*_, last) = pieces = await pieces_of(engine, stop=(stop, "never said"))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert last.finish == "stop"


async def test_what_is_sampled_with_a_seed_can_be_repeated(engine: Engine) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 7}
    assert await text_of(engine, **sampling) == await text_of(engine, **sampling)


@pytest.mark.parametrize(
    "prompt", ["🦠" * 20, "a\x00b", "'; DROP TABLE facts; --", "«ü»\n\r\t", " ", "</s><s>", "data: [DONE]"]
)
async def test_odd_prompts_are_continued_like_others(engine: Engine, prompt: str) -> None:
    assert await text_of(engine, prompt)


async def test_a_prompt_that_does_not_fit_is_refused_and_the_engine_goes_on(engine: Engine) -> None:
    with pytest.raises(LayerError, match=f"has a window of {WINDOW}"):
        await text_of(engine, "word " * WINDOW)
    assert await text_of(engine)


async def test_a_longer_text_has_more_tokens(engine: Engine) -> None:
    one, three = [await engine.count_tokens((Message("user", text),)) for text in ("one", "one two three")]
    assert 0 < one < three


async def test_closing_the_iterator_frees_the_server(engine: Engine) -> None:
    expected = await text_of(engine)
    pieces = engine.generate((Message("user", "What is ATP?"),), Sampling(300))
    await anext(pieces)
    await pieces.aclose()
    assert await asyncio.wait_for(text_of(engine), 10) == expected


def test_an_engine_serves_one_event_loop_after_another(opened: Open, urls: dict[str, str]) -> None:
    engine = opened(urls["openai" if isinstance(opened("http://localhost"), OpenAIEngine) else "koboldcpp"])
    assert asyncio.run(text_of(engine)) == asyncio.run(text_of(engine))


# --- a server that is away


async def test_where_nobody_listens_the_engine_is_unavailable(opened: Open) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        error = await refusal(opened(url))
    assert isinstance(error, LayerUnavailable)
    assert url in str(error)
    assert "start the server" in str(error)


@pytest.mark.parametrize("host", ["nowhere.invalid", "nowhere.invalid:5001/v1"])
async def test_a_name_that_no_machine_has_makes_the_engine_unavailable(opened: Open, host: str) -> None:
    assert isinstance(await refusal(opened(f"http://{host}")), LayerUnavailable)


async def test_tls_with_a_server_that_does_not_speak_it_makes_the_engine_unavailable(opened: Open) -> None:
    async with serving() as server:
        error = await refusal(opened(server.url.replace("http:", "https:")))
    assert isinstance(error, LayerUnavailable)


async def test_context_tokens_is_unavailable_too(opened: Open) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        engine = opened(f"http://127.0.0.1:{bound.getsockname()[1]}", context_tokens=None)  # type: ignore[call-arg]
        with pytest.raises(LayerUnavailable):
            await engine.context_tokens()


@pytest.mark.parametrize(
    "url", ["", "localhost:5001", "ftp://localhost", "http://", "http://me:secret@localhost", "http://h:port", "/a"]
)
def test_what_is_no_address_is_refused_and_no_password_shown(opened: Open, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        opened(url)
    assert "secret" not in str(raised.value)


# --- a server that refuses


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_said_with_its_setting(opened: Open, status: int) -> None:
    async with serving(otherwise=reply({"error": {"message": "no such key"}}, status)) as server:
        error = await refusal(opened(server.url, key="wrong", key_setting="KOBOLD_KEY"))  # type: ignore[call-arg]
    assert "refused the key: set KOBOLD_KEY" in str(error)
    assert "wrong" not in str(error)
    assert not isinstance(error, LayerUnavailable)


async def test_a_key_goes_along_with_every_request(opened: Open, good: list[Any]) -> None:
    async with serving(stream(events(*good))) as server:
        engine = opened(server.url, key="sesame")  # type: ignore[call-arg]
        assert await text_of(engine) == "to bé"
        await engine.aclose()
    assert {headers.get("authorization") for _, headers, _ in server.asked} == {"Bearer sesame"}


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no such thing " * 50}},
        {"error": "no such thing"},
        {"detail": {"msg": "no such thing", "type": "bad_input"}},
        {"detail": [{"loc": ["body"], "msg": "no such thing"}]},
        "no such thing",
        "<html><body>no such\nthing</body></html>",
    ],
)
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_is_told_in_the_servers_own_words(
    opened: Open, status: int, body: str | dict[str, Any]
) -> None:
    async with serving(reply(body, status)) as server:
        error = await refusal(opened(server.url))
    assert not isinstance(error, LayerUnavailable)
    assert f"HTTP {status}: no such thing" in str(error)


@pytest.mark.parametrize("status", [429, 500, 502, 504])
async def test_a_server_that_cannot_just_now_is_unavailable(opened: Open, status: int) -> None:
    async with serving(reply({"error": {"message": "too many"}}, status)) as server:
        error = await refusal(opened(server.url))
    assert isinstance(error, LayerUnavailable)
    assert f"HTTP {status}: too many" in str(error)


async def test_an_address_that_moved_is_told_with_the_new_one(opened: Open) -> None:
    moved = b"HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with serving(moved) as server:
        assert "'https://elsewhere/'" in str(await refusal(opened(server.url)))


# --- a server that talks nonsense


@pytest.mark.parametrize(
    "nonsense",
    [reply(HTML, kind="text/html"), reply("[]"), reply("null"), reply("{"), reply("5"), reply("[" * 100_000), reply(b"\xff\xfe")],
    ids=["html", "list", "null", "half", "number", "deep", "bytes"],
)  # fmt: skip
async def test_nonsense_instead_of_everything_is_an_error(opened: Open, nonsense: bytes) -> None:
    async with serving(otherwise=nonsense) as server:
        error = await refusal(opened(server.url))
    assert not isinstance(error, LayerUnavailable)
    assert server.url in str(error)


@pytest.mark.parametrize(
    "event",
    [
        "5",
        "[]",
        "null",
        "{",
        "nonsense",
        '{"token": 3}',
        '{"choices": 3}',
        '{"choices": [3]}',
        '{"choices": [{"delta": 3}]}',
        "{}",
    ],
)
async def test_nonsense_in_an_event_is_an_error(opened: Open, good: list[Any], event: str) -> None:
    async with serving(stream(events(good[0], event, *good[1:]))) as server:
        error = await refusal(opened(server.url))
    assert not isinstance(error, LayerUnavailable)
    assert "does not answer like" in str(error)


async def test_a_page_instead_of_a_stream_is_an_error(opened: Open) -> None:
    async with serving(reply(HTML, kind="text/html")) as server:
        assert "does not answer like" in str(await refusal(opened(server.url)))


async def test_a_line_without_end_is_not_kept_in_memory(opened: Open) -> None:
    async with serving(stream("data: " + "x" * (6 * 2**20))) as server:
        assert "a line without end" in str(await refusal(opened(server.url)))


async def test_what_is_no_http_makes_the_engine_unavailable(opened: Open) -> None:
    async with serving(otherwise=b"SSH-2.0-OpenSSH_9.6\r\n") as server:
        assert isinstance(await refusal(opened(server.url)), LayerUnavailable)


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/octet-stream"])
async def test_a_stream_with_the_wrong_content_type_is_read(opened: Open, good: list[Any], kind: str) -> None:
    async with serving(stream(events(*good), kind=kind)) as server:
        assert await text_of(opened(server.url)) == "to bé"


async def test_comments_other_fields_and_windows_line_ends_do_not_matter(opened: Open, good: list[Any]) -> None:
    body = ": ping\n\nid: 3\nretry: 10\nevent: message\n" + events(*good)
    async with serving(stream(body.replace("\n", "\r\n"))) as server:
        assert await text_of(opened(server.url)) == "to bé"


# --- a server that is slow, or breaks off


async def test_a_stream_that_drips_byte_by_byte_arrives_whole(opened: Open, good: list[Any]) -> None:
    body = events(*good).encode().replace(rb"\u00e9", "é".encode())  # its two bytes come one by one, too
    async with serving(dripping(stream(body))) as server:
        assert await text_of(opened(server.url)) == "to bé"


@pytest.mark.parametrize("whole", [0, 1, 2])
async def test_a_stream_that_ends_inside_an_event_has_broken_off(opened: Open, good: list[Any], whole: int) -> None:
    async with serving(stream(events(*good[:whole]) + 'data: {"choi')) as server:
        error = await refusal(opened(server.url))
    assert isinstance(error, LayerUnavailable)
    assert "broke off in the middle" in str(error)


@pytest.mark.parametrize("head", ["Content-Length: 5000", "Transfer-Encoding: chunked"])
async def test_a_body_that_is_shorter_than_promised_has_broken_off(opened: Open, good: list[Any], head: str) -> None:
    body = events(*good[:2])
    chunk = f"{len(body):x}\r\n{body}\r\n" if "chunked" in head else body
    async with serving(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n{chunk}".encode()) as server:
        assert isinstance(await refusal(opened(server.url)), LayerUnavailable)


async def test_a_connection_that_ends_before_any_answer_is_unavailable(opened: Open) -> None:
    async with serving(b"") as server:
        assert isinstance(await refusal(opened(server.url)), LayerUnavailable)
    async with serving(stream("")) as server:
        assert isinstance(await refusal(opened(server.url)), LayerUnavailable)


async def test_a_silent_server_is_left_when_the_caller_is_cancelled(opened: Open) -> None:
    async with serving() as server:
        _make_silent(server)
        engine = opened(server.url)
        asking = asyncio.create_task(text_of(engine))
        await asyncio.wait_for(server.reached.wait(), 10)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(server.left.wait(), 10)
        await engine.aclose()


async def test_a_server_that_stays_silent_is_given_up_after_its_time(opened: Open) -> None:
    async with serving() as server:
        _make_silent(server)
        error = await refusal(opened(server.url, timeout_s=0.05))  # type: ignore[call-arg]
    assert isinstance(error, LayerUnavailable)
    assert "said nothing for 0.05 seconds" in str(error)


async def test_closing_the_iterator_closes_the_connection(opened: Open, good: list[Any]) -> None:
    async with serving() as server:
        begun = stream(events(*good[:2]))

        async def begin(writer: asyncio.StreamWriter) -> None:
            writer.write(begun)
            await server.silence(writer)

        server._answers |= dict.fromkeys(("/v1/chat/completions", "/api/extra/generate/stream"), begin)
        engine = opened(server.url)
        pieces = engine.generate((Message("user", "?"),), Sampling(8))
        assert (await anext(pieces)).text == "to"
        await pieces.aclose()
        await asyncio.wait_for(server.left.wait(), 10)
        await engine.aclose()


def _make_silent(server: BadServer) -> None:
    server._answers |= dict.fromkeys(("/v1/chat/completions", "/api/extra/generate/stream"), server.silence)
