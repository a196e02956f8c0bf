"""A cluster with other settings: layers 1, 4 and 5 at servers elsewhere, and two replicas of layer 2."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from contract import engine_servers as servers

from actors import cluster as local
from actors.haproxy import free_port
from kitbash_ray.config import load_settings
from kitbash_ray.tiny_model import write_tiny_gguf

from .harness import UNKNOWN, Cluster, asking, copy_cartridges, eventually

CHAT = {"messages": [{"role": "user", "content": UNKNOWN}], "max_tokens": 5}


@pytest.fixture(scope="module")
def elsewhere(_clean_session: None) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))
    model = write_tiny_gguf(folder / "tiny.gguf")
    with servers.koboldcpp_server(model) as kobold, servers.openai_server(model) as openai:
        settings = load_settings(
            kitbash_state_dir=folder / "state",
            kitbash_port=free_port(),
            kitbash_dashboard_port=free_port(),
            cartridges_dir=copy_cartridges(folder / "cartridges"),
            bitnet_type="remote",
            bitnet_host=openai,
            bitnet_max_tokens=8,
            cartridge_resource="device_b, device_c",
            cartridge_timeout=20_000,  # questions come at once while a replica loads, on two cores
            kobold_type="koboldcpp",
            kobold_host=kobold,
            kobold_max_tokens=16,
            kitbash_cloud_url=openai,
            kitbash_cloud_prompt_price=100,
            kitbash_cloud_answer_price=200,
            kitbash_cloud_query_budget=0.05,
            kitbash_cloud_context=512,
            kitbash_cloud_max_tokens=16,
        )
        up = local.up(settings, lambda what: print(what, flush=True))
        try:
            yield Cluster(settings, up, settings.cartridges_dir)
        finally:
            local.down(settings, lambda what: print(what, flush=True))
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def http(elsewhere: Cluster) -> Iterator[httpx.Client]:
    with elsewhere.http() as connected:
        yield connected


@pytest.mark.parametrize("layer", ["bitnet", "kobold", "cloud"])
def test_each_of_them_answers_and_streams(http: httpx.Client, layer: str) -> None:
    whole = http.post("/v1/chat/completions", json={"model": f"kitbash/{layer}", **CHAT}).json()
    assert whole["choices"][0]["message"]["content"]
    assert whole["usage"]["completion_tokens"] == 5
    streamed = http.post("/v1/chat/completions", json={"model": f"kitbash/{layer}", "stream": True, **CHAT}).text
    assert streamed.endswith("data: [DONE]\n\n")
    assert "error" not in streamed


def test_the_cloud_is_asked_for_money_and_says_how_much(http: httpx.Client) -> None:
    told = http.post("/v1/chat/completions", json={"model": "kitbash/cloud", **CHAT}).json()
    cost = told["kitbash"]["cost_usd"]
    assert cost == pytest.approx((told["usage"]["prompt_tokens"] * 100 + 5 * 200) / 1e6)


def test_an_answer_that_layer_4_has_costs_nothing(http: httpx.Client) -> None:
    answer = http.post("/v1/query", json={"query": UNKNOWN}).json()
    assert (answer["status"], answer["layer"]) == ("answered", "kobold")
    assert [step["layer"] for step in answer["path"]] == ["grain", "bitnet", "cartridge", "kobold"]


def test_a_question_that_could_cost_too_much_is_not_sent(http: httpx.Client) -> None:
    dear = {"model": "kitbash/cloud", "messages": [{"role": "user", "content": "x" * 3000}], "max_tokens": 300}
    reply = http.post("/v1/chat/completions", json=dear)
    assert reply.status_code == 400
    assert "one question may cost" in reply.json()["error"]["message"]


def test_tools_go_to_the_engine_that_can_call_them(http: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    told = http.post("/v1/chat/completions", json={"model": "kitbash", "tools": [tool], **CHAT}).json()
    path = {step["layer"]: step for step in told["kitbash"]["path"]}
    assert told["kitbash"]["layer"] == "cloud"
    assert "cannot call tools" in path["kobold"]["reason"]


def replicas(cluster: Cluster) -> dict[str, int]:
    """The living replicas of layer 2: pids by name."""
    return {beat["name"]: int(beat["pid"]) for beat in cluster.layers()["cartridge"].get("replicas", ())}


def test_each_resource_that_is_named_has_a_replica_and_one_that_dies_costs_no_answer(elsewhere: Cluster) -> None:
    before = eventually(lambda: len(replicas(elsewhere)) == 2 and replicas(elsewhere), 30, "both replicas live")
    assert set(before) == {"cartridge", "cartridge-2"}
    with asking(elsewhere, UNKNOWN) as asked:
        eventually(lambda: len(asked.answers) > 2, 20, "questions are answered")
        for name in before:
            os.kill(replicas(elsewhere)[name], signal.SIGKILL)
            gone = len(asked.answers)
            eventually(lambda gone=gone: len(asked.answers) > gone + 2, 30, "questions are answered by the other")
            eventually(lambda name=name: replicas(elsewhere).get(name, before[name]) != before[name], 20, f"{name} is back")
            back = len(asked.answers)  # the front door asks for its health once a second
            eventually(lambda back=back: len(asked.answers) > back + 20, 30, "the front door knows that it is back")
    assert asked.errors == []
    steps = [step for answer in asked.answers for step in answer.path if step.layer == "cartridge"]
    assert [step for step in steps if step.outcome not in ("answered", "abstained")] == []
    assert {answer.degraded for answer in asked.answers} == {()}
