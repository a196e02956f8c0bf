"""Keys, each with its own error budget, and the gate that knows them."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

from kitbash_ray.cli import app
from kitbash_ray.errors import ConfigError
from kitbash_ray.gate import BUDGET, Gate
from kitbash_ray.keys import Keyring, add_key, read_keys, remove_key

TOKEN = "the-token-of-this-test"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys.json"


async def tell_budget(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that replies with the budget of whoever asks."""
    await JSONResponse({"budget": Request(scope).scope.get(BUDGET, "none")})(scope, receive, send)


async def asked(path: Path, authorization: str, route: str = "/v1/layers") -> httpx.Response:
    transport = httpx.ASGITransport(Gate(tell_budget, TOKEN, Keyring(path)))
    async with httpx.AsyncClient(transport=transport, base_url="http://kitbash") as client:
        return await client.get(route, headers={"Authorization": authorization})


def test_a_key_is_kept_as_a_hash_that_only_its_owner_can_read(path: Path) -> None:
    secret = add_key(path, "homework", 0.02)
    (key,) = read_keys(path)
    assert (key.name, key.max_error) == ("homework", 0.02)
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_key_lets_in_with_its_budget_and_the_token_without_one(path: Path) -> None:
    strict, plain = add_key(path, "strict", 0.01), add_key(path, "plain", None)
    assert (await asked(path, f"Bearer {strict}")).json() == {"budget": 0.01}
    assert (await asked(path, f"bearer {plain}")).json() == {"budget": None}
    assert (await asked(path, f"Bearer {TOKEN}")).json() == {"budget": "none"}


@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer kb_nobody", "Basic kb_nobody"])
async def test_whoever_has_neither_stays_outside(path: Path, given: str) -> None:
    add_key(path, "strict", 0.01)
    assert (await asked(path, given)).status_code == 401


def test_a_removed_key_is_forgotten_and_a_new_one_known_at_once(path: Path) -> None:
    ring = Keyring(path)
    assert ring.find("kb_nothing") is None
    secret = add_key(path, "a", None)
    assert ring.find(secret)
    remove_key(path, "a")
    assert ring.find(secret) is None


def test_a_name_is_given_once_and_only_a_known_one_is_removed(path: Path) -> None:
    add_key(path, "a", None)
    with pytest.raises(ConfigError, match="already"):
        add_key(path, "a", None)
    with pytest.raises(ConfigError, match="there are: a"):
        remove_key(path, "b")


def test_a_damaged_file_lets_nobody_in_and_is_named(path: Path) -> None:
    secret = add_key(path, "a", None)
    path.write_text("[{")
    assert Keyring(path).find(secret) is None
    with pytest.raises(ConfigError, match=r"keys\.json cannot be used"):
        read_keys(path)


@pytest.mark.parametrize(
    ("route", "worker", "ordinary"),
    [
        ("/v1/work/bitnet/claim", 200, 403),
        ("/v1/work/bitnet/1-0/result", 200, 403),
        ("/v1/work/kobold/claim", 403, 403),
        ("/v1/work/bitnet", 403, 403),
        ("/v1/work/bitnets/claim", 403, 403),
        ("/v1/query", 403, 200),
        ("/v1/layers", 403, 200),
        ("//v1/work/bitnet/claim", 403, 200),
        ("/health/ready", 200, 200),
    ],
)
async def test_the_key_of_a_worker_opens_the_work_of_its_layer_and_an_ordinary_key_all_but_work(
    path: Path, route: str, worker: int, ordinary: int
) -> None:
    serves, asks = add_key(path, "pi", None, "bitnet"), add_key(path, "homework", None)
    assert (await asked(path, f"Bearer {serves}", route)).status_code == worker
    assert (await asked(path, f"Bearer {asks}", route)).status_code == ordinary
    assert (await asked(path, f"Bearer {TOKEN}", route)).status_code == 200


def test_a_worker_has_no_error_budget_and_the_list_says_what_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KITBASH_STATE_DIR", str(tmp_path))
    refused = CliRunner().invoke(app, ["key", "add", "pi", "--worker", "bitnet", "--max-error", "0.1"])
    assert isinstance(refused.exception, ConfigError)
    assert CliRunner().invoke(app, ["key", "add", "pi", "--worker", "bitnet"]).exit_code == 0
    assert "serve bitnet" in CliRunner().invoke(app, ["key", "list"]).stdout
    assert CliRunner().invoke(app, ["key", "add", "pi2", "--worker", "grain"]).exit_code == 2
