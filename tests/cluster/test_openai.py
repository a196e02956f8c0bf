"""OpenAI's routes as their own clients use them: openai, litellm, curl."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI

from kitbash_ray import Kitbash

from .conftest import MAX_IN_FLIGHT
from .harness import ATP, UNKNOWN, Cluster, eventually, fact_text, stopped

QUESTION = [{"role": "user", "content": "What is ATP?"}]
HARD = [{"role": "user", "content": UNKNOWN}]
SCHEMA = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def ai(cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.token, max_retries=0, timeout=60) as client:
        yield client


def test_a_stored_question_is_answered_by_layer_0_and_says_so_in_extension_and_headers(ai: OpenAI) -> None:
    reply = ai.chat.completions.with_raw_response.create(model="kitbash", messages=QUESTION)
    completion = reply.parse()
    assert completion.choices[0].message.content == fact_text(ATP)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == 0
    extension = completion.model_extra["kitbash"]
    assert (extension["status"], extension["layer"]) == ("answered", "grain")
    assert extension["sources"][0]["fact_id"] == f"biochemistry:{ATP}"
    assert reply.headers["x-kitbash-layer"] == "grain"
    assert float(reply.headers["x-kitbash-confidence"]) > 0.9
    assert reply.headers["x-kitbash-path"] == "grain:answered"


def test_a_streamed_answer_comes_in_chunks_that_make_the_same_text(ai: OpenAI) -> None:
    chunks = list(ai.chat.completions.create(model="kitbash", messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == fact_text(ATP)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["kitbash"]["layer"] == "grain"
    assert len({chunk.id for chunk in chunks}) == 1


def test_layer_4_streams_while_it_writes_and_usage_comes_last_when_asked_for(ai: OpenAI) -> None:
    stream = ai.chat.completions.create(
        model="kitbash/kobold", messages=HARD, max_tokens=1500, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(texts) > 3  # tokens that wait while others are carried go on together
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 1500
    assert chunks[-2].choices[0].finish_reason == "length"
    whole = ai.chat.completions.create(model="kitbash/kobold", messages=HARD, max_tokens=1500)
    assert whole.choices[0].message.content == "".join(texts).strip()


def test_an_answer_of_the_cascade_by_layer_4_is_streamed_as_well(ai: OpenAI) -> None:
    chunks = list(ai.chat.completions.create(model="kitbash", messages=HARD, stream=True))
    assert chunks[-1].model_extra["kitbash"]["layer"] == "kobold"
    whole = ai.chat.completions.create(model="kitbash", messages=HARD)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == whole.choices[0].message.content


@pytest.mark.parametrize(
    "special",
    [
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "system", "content": "You are a pirate. " * 20}, *QUESTION]},
        {"messages": [*QUESTION, {"role": "assistant", "content": "It is"}]},
        {"messages": [*QUESTION, {"role": "assistant", "content": "A carrier."}, {"role": "user", "content": "why?"}]},
    ],
    ids=["a schema", "long instructions", "a begun answer", "a follow-up"],
)
def test_what_no_grain_can_do_goes_to_layer_4(ai: OpenAI, special: dict[str, object]) -> None:
    completion = ai.chat.completions.create(**{"model": "kitbash", "messages": QUESTION, "max_tokens": 60, **special})
    assert completion.model_extra["kitbash"]["layer"] == "kobold"
    assert completion.usage.completion_tokens > 0


def test_a_json_schema_is_kept(ai: OpenAI) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    completion = ai.chat.completions.create(model="kitbash", messages=HARD, response_format=format_, max_tokens=200)
    assert set(json.loads(completion.choices[0].message.content)) == {"wet"}


def test_tools_are_refused_with_the_reason_where_no_engine_can_call_them(ai: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot call tools"):
        ai.chat.completions.create(model="kitbash", messages=QUESTION, tools=[TOOL])
    with pytest.raises(openai.APIError, match="cannot call tools"):
        list(ai.chat.completions.create(model="kitbash", messages=QUESTION, tools=[TOOL], stream=True))


def test_a_layer_can_be_asked_directly(ai: OpenAI) -> None:
    completion = ai.chat.completions.create(model="kitbash/cartridge", messages=QUESTION)
    assert completion.model_extra["kitbash"]["layer"] == "cartridge"
    assert [step["layer"] for step in completion.model_extra["kitbash"]["path"]] == ["cartridge"]


def test_a_question_may_have_its_own_budget_and_knowledge(ai: OpenAI) -> None:
    def asked(**own: object) -> dict[str, object]:
        completion = ai.chat.completions.create(model="kitbash", messages=QUESTION, extra_body={"kitbash": own})
        return completion.model_extra["kitbash"]

    assert asked(max_error=0.001)["layer"] == "grain"
    assert asked(cartridges=["kitbash"])["layer"] != "grain"
    with pytest.raises(openai.BadRequestError, match="max_error"):
        asked(max_error=7)


def test_models_are_the_cascade_its_layers_and_the_embedding_model(ai: OpenAI) -> None:
    names = [model.id for model in ai.models.list()]
    assert names == [
        "kitbash", "kitbash/grain", "kitbash/bitnet", "kitbash/cartridge", "kitbash/kobold", "kitbash/embedding",
    ]  # fmt: skip
    assert ai.models.retrieve("kitbash/kobold").owned_by == "kitbash"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-4o'"):
        ai.chat.completions.create(model="gpt-4o", messages=QUESTION)


def test_a_completion_takes_the_prompt_as_the_question(ai: OpenAI) -> None:
    assert ai.completions.create(model="kitbash", prompt="What is ATP?").choices[0].text == fact_text(ATP)
    chunks = list(ai.completions.create(model="kitbash/kobold", prompt=UNKNOWN, max_tokens=4, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks).strip()


def test_embeddings_are_unit_vectors_in_both_encodings(ai: OpenAI, http: httpx.Client) -> None:
    made = ai.embeddings.create(model="kitbash/embedding", input=["a cat", "a kitten", "the tax law"])
    cat, kitten, law = (np.array(item.embedding) for item in made.data)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-3)
    assert cat @ kitten > cat @ law
    assert made.usage.prompt_tokens > 5
    encoded = http.post("/v1/embeddings", json={"input": "a cat", "encoding_format": "base64"}).json()
    assert np.frombuffer(base64.b64decode(encoded["data"][0]["embedding"]), "<f4") == pytest.approx(cat, abs=1e-6)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("chat/completions", {}),
        ("chat/completions", {"messages": []}),
        ("chat/completions", {"messages": "hello"}),
        ("chat/completions", {"messages": [{"role": "system", "content": "x"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": " "}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("chat/completions", {"messages": QUESTION, "n": 2}),
        ("chat/completions", {"messages": QUESTION, "logprobs": True}),
        ("chat/completions", {"messages": QUESTION, "temperature": 9}),
        ("chat/completions", {"messages": QUESTION, "max_tokens": -1}),
        ("chat/completions", {"messages": QUESTION, "stop": 5}),
        ("chat/completions", {"messages": QUESTION, "response_format": {"type": "xml"}}),
        ("chat/completions", {"messages": QUESTION, "kitbash": {"unknown": 1}}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a\0b"}]}),
        ("completions", {"prompt": ""}),
        ("completions", {"prompt": ["one", "two"]}),
        ("completions", {"prompt": "x", "echo": True}),
        ("embeddings", {}),
        ("embeddings", {"input": []}),
        ("embeddings", {"input": [1, 2]}),
        ("embeddings", {"input": "x", "dimensions": 3}),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_one_sentence(http: httpx.Client, route: str, body: object) -> None:
    reply = http.post(f"/v1/{route}", json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["message"].endswith(".")
    assert set(error) == {"message", "type", "param", "code"}


def test_a_schema_that_is_none_is_no_fault_of_the_server(ai: OpenAI) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}
    with pytest.raises(openai.APIStatusError, match="JSON schema cannot be used"):
        ai.chat.completions.create(model="kitbash", messages=HARD, response_format=format_)


def test_a_wrong_key_is_refused(cluster: Cluster) -> None:
    with (
        OpenAI(base_url=f"{cluster.url}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_as_many_at_once_as_the_front_door_takes_get_their_own_answers(ai: OpenAI) -> None:
    def ask(number: int) -> tuple[str, str]:
        prompt = [{"role": "user", "content": f"{UNKNOWN} {number}"}]
        completion = ai.chat.completions.create(model="kitbash/kobold", messages=prompt, max_tokens=8)
        return completion.id, completion.choices[0].message.content

    alone = [ask(number)[1] for number in range(MAX_IN_FLIGHT)]
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
        together = list(pool.map(ask, range(MAX_IN_FLIGHT)))
    assert [text for _, text in together] == alone
    assert len({name for name, _ in together}) == MAX_IN_FLIGHT


def test_leaving_a_stream_cancels_the_question(cluster: Cluster, ai: OpenAI, client: Kitbash) -> None:
    with stopped(cluster.pid("kobold")):
        stream = ai.chat.completions.with_raw_response.create(model="kitbash/kobold", messages=HARD, stream=True)
        query_id = stream.headers["x-kitbash-query-id"]
        stream.http_response.close()
        eventually(lambda: client.query(query_id)["state"] == "cancelled", 2, "the question is cancelled")


def test_deleting_a_query_ends_it_and_tells_whoever_waits(cluster: Cluster, http: httpx.Client, client: Kitbash) -> None:
    with stopped(cluster.pid("kobold")), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.post, "/v1/query", json={"query": f"{UNKNOWN} deleted"})
        query_id = eventually(lambda: _at_layer_4(client, f"{UNKNOWN} deleted"), 10, "layer 4 is asked")
        deleted = http.delete(f"/v1/queries/{query_id}")
        assert (deleted.status_code, deleted.json()["state"]) == (200, "cancelled")
        answer = waiting.result(5).json()
    assert (answer["status"], answer["reason"]) == ("cancelled", "it was called off")
    assert client.query(query_id)["state"] == "cancelled"
    assert http.delete(f"/v1/queries/{query_id}").status_code == 409
    assert http.delete("/v1/queries/q_0000000000000000").status_code == 404


def _at_layer_4(client: Kitbash, question: str) -> str | None:
    ids = {event.query_id for event in client.feed("0", follow=False) if event.query and event.query.text == question}
    asked = (query_id for query_id in ids if any(event.layer == "kobold" for event in client.events(query_id)))
    return next(asked, None)


def test_curl_shows_the_stream_as_it_comes(cluster: Cluster) -> None:
    body = json.dumps({"model": "kitbash/kobold", "messages": HARD, "max_tokens": 5, "stream": True})
    done = subprocess.run(
        ["curl", "-sN", f"{cluster.url}/v1/chat/completions", "-H", f"Authorization: Bearer {cluster.token}", "-d", body],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    assert len(lines) >= 4


def test_litellm_gets_an_answer_and_a_stream(cluster: Cluster) -> None:
    # A process of its own: importing litellm takes seconds and looks for a list of prices on the network
    script = (
        "import os, sys; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'\n"
        "import litellm\n"
        "asked = dict(model='openai/kitbash', api_base=sys.argv[1], api_key=sys.argv[2],"
        " messages=[{'role': 'user', 'content': 'What is ATP?'}])\n"
        "print(litellm.completion(**asked).choices[0].message.content)\n"
        "print(''.join(chunk.choices[0].delta.content or '' for chunk in litellm.completion(stream=True, **asked)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, f"{cluster.url}/v1", cluster.token],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == [fact_text(ATP)] * 2, done.stderr[-2000:]
