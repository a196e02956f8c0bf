"""The front door's token, and other secrets: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from kitbash_ray.config import Settings
from kitbash_ray.errors import ConfigError, Unauthorized


def token_file(settings: Settings) -> Path:
    return settings.state_dir / "token"


def ensure_token(settings: Settings) -> str:
    """The token of KITBASH_TOKEN, else the one in the file, else a new one that is put there."""
    if settings.kitbash_token:
        return settings.kitbash_token
    ensure_secret(token_file(settings), secrets.token_urlsafe(24))
    return find_token(settings)


def ensure_secret(path: Path, secret: str) -> str:
    """What is in the file; `secret` is put there if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret)
        # A link appears with its content: of two processes that start at once, both read the first one's.
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text().strip()


def find_secret(path: Path) -> str:
    """What is in the file. Raises ConfigError when there is no such file."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"There is no {path}: `kitbash node setup` makes it on the head, `ray up` copies it.") from error


def find_token(settings: Settings) -> str:
    """The token that exists. Raises Unauthorized when there is none yet."""
    if settings.kitbash_token:
        return settings.kitbash_token
    path = token_file(settings)
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise Unauthorized(f"There is no token at {path}: start with `kitbash up`, or set KITBASH_TOKEN.") from error
    if not token:
        raise Unauthorized(f"{path} is empty: remove it and start again with `kitbash up`.")
    return token
