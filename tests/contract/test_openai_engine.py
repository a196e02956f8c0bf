"""What is particular to OpenAI-compatible servers: what they leave out, refuse, and name differently."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from kitbash_ray.engines.base import Piece, Sampling
from kitbash_ray.engines.openai import OpenAIEngine
from kitbash_ray.errors import LayerError
from kitbash_ray.types import Message, Usage

from .bad_servers import Answer, events, reply, serving, stream

USER = (Message("user", "What is ATP?"),)
CHAT = "/v1/chat/completions"
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def chunk(text: str = "", *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish} | more]}


GOOD = stream(events(chunk("to"), chunk(" be"), END, "[DONE]"))


def models(**entry: Any) -> bytes:
    return reply({"object": "list", "data": [{"id": "tiny"} | entry, {"id": "other", "max_model_len": 9}]})


async def pieces_of(engine: OpenAIEngine, messages: tuple[Message, ...] = USER, **sampling: Any) -> list[Piece]:
    async with aclosing(engine.generate(messages, Sampling(16, **sampling))) as pieces:
        found = [piece async for piece in pieces]
    await engine.aclose()
    return found


async def asked_by(sampling: dict[str, Any], messages: tuple[Message, ...] = USER) -> dict[str, Any]:
    """The body of the request that a generation makes."""
    async with serving(GOOD) as server:
        await pieces_of(OpenAIEngine(server.url), messages, **sampling)
    (body,) = server.bodies(CHAT)
    return body


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
async def test_the_address_may_end_with_v1_or_not(end: str) -> None:
    async with serving(GOOD) as server:
        assert len(await pieces_of(OpenAIEngine(server.url + end))) == 3


@pytest.mark.parametrize("path", ["/v1beta/openai", "/api/paas/v4", "/proxy/v1"])
async def test_another_path_is_taken_as_it_is(path: str) -> None:
    async with serving() as server:
        server._answers[f"{path}/chat/completions"] = GOOD
        assert len(await pieces_of(OpenAIEngine(server.url + path, model="m"))) == 3


async def test_the_first_listed_model_is_used_and_asked_for_once() -> None:
    async with serving(GOOD) as server:
        engine = OpenAIEngine(server.url)
        assert engine.name == ""
        await pieces_of(engine)
        await pieces_of(engine)
    assert engine.name == "tiny"
    assert [body["model"] for body in server.bodies(CHAT)] == ["tiny", "tiny"]
    assert len(server.bodies("/v1/models")) == 1


async def test_a_server_without_a_list_of_models_is_asked_without_a_name() -> None:
    async with serving(GOOD) as server:
        del server._answers["/v1/models"]
        await pieces_of(OpenAIEngine(server.url))
    assert "model" not in server.bodies(CHAT)[0]


PROPS = reply({"default_generation_settings": {"n_ctx": 2048}})


@pytest.mark.parametrize(
    ("model", "listed", "props", "window"),
    [
        ("", models(max_model_len=8192), None, 8192),
        ("", models(context_length=1000), None, 1000),
        ("", models(meta={"n_ctx_train": 131072}), None, 131072),
        ("", models(meta={"n_ctx_train": 131072}), PROPS, 2048),
        ("other", models(), None, 9),
        ("unlisted", models(max_model_len=8192), None, 4096),
        ("", models(max_model_len="8192"), None, 4096),
        ("", models(), None, 4096),
        ("", reply({"data": [3]}), None, 4096),
        ("", reply("nonsense", 404), None, 4096),
    ],
)
async def test_the_window_is_what_the_server_tells(model: str, listed: bytes, props: bytes | None, window: int) -> None:
    async with serving() as server:
        server._answers |= {"/v1/models": listed} | ({"/props": props} if props else {})
        engine = OpenAIEngine(server.url, model=model)
        assert await engine.context_tokens() == window
        await engine.aclose()


@pytest.mark.parametrize(
    ("path", "answer", "count"),
    [
        ("/tokenize", reply({"tokens": [1] * 30}), 38),  # llama-server: bare text
        ("/tokenize", reply({"count": 30, "max_model_len": 100, "tokens": [1] * 30}), 30),  # vLLM: the whole prompt
        ("/extras/tokenize/count", reply({"count": 30}), 38),
        ("/tokenize", reply({"tokens": 3}), 28),
        ("/tokenize", reply("<html>"), 28),
        ("/tokenize", reply("no", 500), 28),
        ("/nowhere", b"", 28),  # 70 characters, 3.5 a token, and 8
    ],
)
async def test_tokens_are_counted_by_the_server_or_estimated(path: str, answer: bytes, count: int) -> None:
    async with serving() as server:
        server._answers[path] = answer
        engine = OpenAIEngine(server.url)
        assert await engine.count_tokens((Message("user", "x" * 70),)) == count
        asked = len(server.asked)
        assert await engine.count_tokens((Message("user", "x" * 70),)) == count
        assert len(server.asked) - asked <= 1  # routes that are not there are not tried again
        await engine.aclose()


async def test_what_is_asked_for_is_sent() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    body = await asked_by(
        {"stop": ("END",), "temperature": 0.5, "top_p": 0.9, "seed": 3, "tools": (tool,), "tool_choice": "auto"}
    )
    assert body["messages"] == [{"role": "user", "content": "What is ATP?"}]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"]) == (16, 0.5, 0.9, 3)
    assert (body["stop"], body["tools"], body["tool_choice"]) == (["END"], [tool], "auto")
    assert (body["stream"], body["stream_options"], body["logprobs"]) == (True, {"include_usage": True}, True)


async def test_what_is_not_asked_for_is_not_sent() -> None:
    assert not {"stop", "seed", "tools", "tool_choice", "response_format"} & set(await asked_by({}))


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({}, {"type": "json_object"}),
        (
            {"type": "object"},
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
async def test_a_schema_becomes_a_response_format(schema: dict[str, Any], kind: dict[str, Any]) -> None:
    assert (await asked_by({"json_schema": schema}))["response_format"] == kind


async def test_calls_and_results_of_tools_go_along_in_the_conversation() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    conversation = (*USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "42", tool_call_id="c1"))
    assert (await asked_by({}, conversation))["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]


async def test_fields_that_a_server_refuses_are_left_out_from_then_on() -> None:
    async with serving() as server:

        async def picky(writer: Any) -> None:
            body = server.asked[-1][2]
            unknown = next((name for name in ("logprobs", "stream_options", "max_tokens", "seed") if name in body), None)
            refusal = {"detail": [{"loc": ["body", unknown], "msg": "Not permitted; max_tokens is max_completion_tokens here"}]}
            if unknown == "logprobs":  # in the words of another server
                refusal = {"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]}
            writer.write(reply(refusal, 422) if unknown else GOOD)
            await writer.drain()

        server._answers[CHAT] = picky
        engine = OpenAIEngine(server.url)
        first, second = await pieces_of(engine, seed=1), await pieces_of(engine, seed=1)
    assert first == second
    assert len(server.bodies(CHAT)) == 5  # four to learn, one that knows
    last = server.bodies(CHAT)[-1]
    assert not {"logprobs", "top_logprobs", "stream_options", "max_tokens", "seed"} & set(last)
    assert last["max_completion_tokens"] == 16


@pytest.mark.parametrize("status", [400, 422, 500])
async def test_a_refusal_that_stays_is_told_and_nothing_is_learned_from_it(status: int) -> None:
    answer: Answer = reply({"error": {"message": "bad logprobs, stream_options and max_tokens"}}, status)
    async with serving(answer) as server:
        engine = OpenAIEngine(server.url)
        with pytest.raises(LayerError, match="bad logprobs"):
            await pieces_of(engine)
        server._answers[CHAT] = GOOD
        await pieces_of(engine)
    assert {"logprobs", "stream_options", "max_tokens"} <= set(server.bodies(CHAT)[-1])


async def test_log_probabilities_are_told_if_the_server_tells_them() -> None:
    told = {"content": [{"token": "to", "logprob": -0.5}, {"token": " be", "logprob": None}, 3]}
    async with serving(stream(events(chunk("to be", logprobs=told), chunk("!", logprobs=None), END))) as server:
        first, second, _ = await pieces_of(OpenAIEngine(server.url))
    assert (first.logprobs, second.logprobs) == ((-0.5,), ())


async def test_a_koboldcpp_is_not_asked_for_probabilities_that_say_nothing() -> None:
    async with serving(GOOD) as server:
        server._answers["/v1/models"] = models(owned_by="koboldcpp")
        await pieces_of(OpenAIEngine(server.url))
    assert not {"logprobs", "top_logprobs"} & set(server.bodies(CHAT)[0])


@pytest.mark.parametrize(
    ("chunks", "usage"),
    [
        ([chunk("a"), END, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}], Usage(9, 4)),
        ([chunk("a"), END | {"usage": {"prompt_tokens": 9, "completion_tokens": 4}}], Usage(9, 4)),
        ([chunk("a"), chunk("b"), END | {"usage": None}], Usage(11, 2)),  # an estimate, and a token a piece
    ],
)
async def test_usage_is_the_servers_or_an_estimate(chunks: list[dict[str, Any]], usage: Usage) -> None:
    async with serving(stream(events(*chunks, "[DONE]"))) as server:
        assert (await pieces_of(OpenAIEngine(server.url)))[-1].usage == usage


@pytest.mark.parametrize(
    ("told", "finish"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("content_filter", "stop"),
    ],
)
async def test_every_end_has_one_of_three_names(told: str, finish: str) -> None:
    async with serving(stream(events(chunk("a", finish=told)))) as server:
        assert (await pieces_of(OpenAIEngine(server.url)))[-1].finish == finish


def delta(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": list(calls)}, "finish_reason": None}]}


async def test_the_deltas_of_tool_calls_are_put_together_in_the_last_piece() -> None:
    chunks = [
        delta({"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}),
        delta({"index": 0, "function": {"arguments": '{"a":'}}),
        delta({"index": 1, "id": "c2", "function": {"name": "now"}}, {"index": 0, "function": {"arguments": " 1}"}}),
        chunk(finish="tool_calls"),
    ]
    async with serving(stream(events(*chunks, "[DONE]"))) as server:
        (last,) = await pieces_of(OpenAIEngine(server.url))
    assert last.finish == "tool_calls"
    assert last.tool_calls == (
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}},
    )


async def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    calls = [{"index": 0, "id": f"c{n}", "function": {"name": "f", "arguments": {"n": n}}} for n in (1, 2)]
    async with serving(stream(events(*map(delta, calls), chunk(finish="tool_calls")))) as server:
        (last,) = await pieces_of(OpenAIEngine(server.url))
    assert [json.loads(call["function"]["arguments"]) for call in last.tool_calls] == [{"n": 1}, {"n": 2}]


async def test_an_error_inside_the_stream_is_told_in_the_servers_words() -> None:
    async with serving(stream(events(chunk("a"), {"error": {"message": "out of memory", "code": 500}}))) as server:
        with pytest.raises(LayerError, match="stopped: out of memory"):
            await pieces_of(OpenAIEngine(server.url))


async def test_thoughts_are_not_part_of_the_answer() -> None:
    thinking = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    async with serving(stream(events(thinking, chunk("yes"), END))) as server:
        assert [piece.text for piece in await pieces_of(OpenAIEngine(server.url))] == ["yes", ""]
