"""Keys, each with its own error budget, and the gate that knows them."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

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


async def asked(path: Path, authorization: str) -> httpx.Response:
    transport = httpx.ASGITransport(Gate(tell_budget, TOKEN, Keyring(path)))
    async with httpx.AsyncClient(transport=transport, base_url="http://kitbash") as client:
        return await client.get("/v1/layers", headers={"Authorization": authorization})


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
