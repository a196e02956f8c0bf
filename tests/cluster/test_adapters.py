"""Adapters of layer 4's model, swapped while it serves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kitbash_ray import Kitbash
from kitbash_ray.errors import ClientError
from kitbash_ray.tiny_model import write_tiny_adapter

from .harness import UNKNOWN, Cluster, eventually

CHAT = {"model": "kitbash/kobold", "messages": [{"role": "user", "content": UNKNOWN}], "max_tokens": 40}


@pytest.fixture
def added(cluster: Cluster, client: Kitbash, tmp_path: Path) -> Iterator[str]:
    done = cluster.command("models", "adapter", "add", str(write_tiny_adapter(tmp_path / "a.gguf")), "--name", "test-style")
    assert done.returncode == 0, done.stderr
    yield "test-style"
    client.use_adapter(None)
    (cluster.settings.cache_dir / "adapters" / "test-style.gguf").unlink()
    (cluster.settings.cache_dir / "adapters" / "kobold.json").unlink()


def said(http: httpx.Client) -> str:
    reply = http.post("/v1/chat/completions", json=CHAT)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


def test_an_adapter_is_used_from_the_command_line_and_rolled_back(cluster: Cluster, http: httpx.Client, added: str) -> None:
    bare = said(http)
    used = cluster.command("models", "adapter", "use", added)
    assert f"* {added}" in used.stdout
    styled = said(http)
    assert styled != bare
    eventually(lambda: cluster.layers()["kobold"]["adapter"] == added, 5, "the heartbeat tells the adapter")
    assert "* no adapter" in cluster.command("models", "adapter", "rollback").stdout
    assert said(http) == bare
    assert f"* {added}" in cluster.command("models", "adapter", "rollback").stdout
    assert said(http) == styled
    assert "* no adapter" in cluster.command("models", "adapter", "off").stdout


def test_no_request_is_dropped_while_adapters_are_swapped(http: httpx.Client, client: Kitbash, added: str) -> None:
    bare = said(http)
    client.use_adapter(added)
    styled = said(http)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(said, http) for _ in range(24)]
        for number in range(12):
            client.use_adapter(added if number % 2 else None)
        answers = {each.result(30) for each in asked}
    assert answers <= {bare, styled}


def test_an_unknown_adapter_or_layer_is_refused_and_the_one_in_use_stays(client: Kitbash, added: str) -> None:
    client.use_adapter(added)
    with pytest.raises(ClientError, match="There is no adapter 'nothing'"):
        client.use_adapter("nothing")
    with pytest.raises(ClientError, match="There is no layer 'grain' with adapters"):
        client.use_adapter(added, "grain")
    assert client.adapters()["current"] == added


@pytest.mark.parametrize("body", ["", "{}", '{"name": 5}', '{"name": "../../etc/passwd"}', '{"name": "a\\u0000b"}', "[]"])
def test_bad_input_is_refused_in_one_sentence(http: httpx.Client, body: str) -> None:
    reply = http.put("/v1/layers/kobold/adapter", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].endswith(".")


def test_a_key_may_look_and_not_swap(cluster: Cluster) -> None:
    key = cluster.command("key", "add", "looker").stdout.split()[-1]
    try:
        with cluster.http(headers={"Authorization": f"Bearer {key}"}) as http:
            assert http.get("/v1/layers/kobold/adapter").status_code == 200
            assert http.put("/v1/layers/kobold/adapter", json={"name": None}).status_code == 403
    finally:
        cluster.command("key", "remove", "looker")
