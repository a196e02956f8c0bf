"""The front door's token."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kitbash_ray.config import Settings, load_settings
from kitbash_ray.errors import Unauthorized
from kitbash_ray.token import ensure_token, find_token, token_file


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(kitbash_state_dir=tmp_path / "state")


def test_a_token_is_made_once_and_found_again(settings: Settings) -> None:
    token = ensure_token(settings)
    assert len(token) >= 24
    assert ensure_token(settings) == find_token(settings) == token


def test_only_its_owner_can_read_the_token(settings: Settings) -> None:
    old = os.umask(0)
    try:
        ensure_token(settings)
    finally:
        os.umask(old)
    assert stat.S_IMODE(token_file(settings).stat().st_mode) == 0o600
    assert stat.S_IMODE(token_file(settings).parent.stat().st_mode) == 0o700


def test_the_configured_token_is_used_and_nothing_is_written(tmp_path: Path) -> None:
    settings = load_settings(kitbash_state_dir=tmp_path / "state", kitbash_token="a configured token")
    assert ensure_token(settings) == find_token(settings) == "a configured token"
    assert not token_file(settings).exists()


def test_two_state_folders_have_two_tokens(tmp_path: Path) -> None:
    one, two = (load_settings(kitbash_state_dir=tmp_path / name) for name in ("one", "two"))
    assert ensure_token(one) != ensure_token(two)


def test_two_processes_get_the_same_token(settings: Settings) -> None:
    code = "from kitbash_ray.config import load_settings; from kitbash_ray.token import ensure_token; print(ensure_token(load_settings()))"
    environment = {**os.environ, "KITBASH_STATE_DIR": str(settings.state_dir)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert said == {f"{find_token(settings)}\n".encode()}


def test_a_process_that_comes_while_another_makes_the_token_gets_the_same_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = secrets.token_urlsafe
    tokens: list[str] = []

    def meanwhile(size: int) -> str:
        monkeypatch.setattr(secrets, "token_urlsafe", make)
        tokens.append(ensure_token(settings))  # the other process, at the worst moment
        return make(size)

    monkeypatch.setattr(secrets, "token_urlsafe", meanwhile)
    tokens.append(ensure_token(settings))
    assert tokens == [find_token(settings)] * 2


def test_without_a_token_one_is_told_how_to_get_it(settings: Settings) -> None:
    with pytest.raises(Unauthorized, match="kitbash up"):
        find_token(settings)


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
@pytest.mark.parametrize("call", [ensure_token, find_token])
def test_an_empty_file_is_no_token(call, content: str, settings: Settings) -> None:
    token_file(settings).parent.mkdir(parents=True)
    token_file(settings).write_text(content)
    with pytest.raises(Unauthorized, match="empty"):
        call(settings)
