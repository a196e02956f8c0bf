"""Keys beside the token: one for each program or person, each with an error budget of its own, or for a worker.

The file holds hashes, so whoever reads it cannot ask in their name; only its owner can read it.
`kitbash key` edits it, and the front door notices. Not here: the token (token.py).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec
from msgspec import Struct

from kitbash_ray.config import Settings
from kitbash_ray.errors import ConfigError

PREFIX = "kb_"


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """A key by its SHA-256. `max_error` is the budget of its questions that state none; None for the deployment's.

    The key of a worker may serve the layer `worker`, and nothing else.
    """

    name: str
    sha256: str
    max_error: float | None = None
    worker: str | None = None


def keys_file(settings: Settings) -> Path:
    return settings.state_dir / "keys.json"


def read_keys(path: Path) -> tuple[Key, ...]:
    """All keys. Raises ConfigError when the file is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Key, ...])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} cannot be used ({error}): repair it, or remove it and add the keys anew.") from error


def add_key(path: Path, name: str, max_error: float | None, worker: str | None = None) -> str:
    """A new key, which is shown this once. Raises ConfigError when the name is taken."""
    keys = read_keys(path)
    if any(key.name == name for key in keys):
        raise ConfigError(f"There is a key {name!r} already: remove it first, or take another name.")
    secret = PREFIX + secrets.token_urlsafe(24)
    _write(path, (*keys, Key(name, digest(secret), max_error, worker)))
    return secret


def remove_key(path: Path, name: str) -> None:
    """Raises ConfigError when there is none of that name."""
    keys = read_keys(path)
    kept = tuple(key for key in keys if key.name != name)
    if len(kept) == len(keys):
        known = ", ".join(key.name for key in keys) or "none"
        raise ConfigError(f"There is no key {name!r}; there are: {known}.")
    _write(path, kept)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(keys))
    partial.replace(path)


class Keyring:
    """The keys as they are in the file now; looks at it again only when it was written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}

    def find(self, secret: str) -> Key | None:
        """The key that `secret` is; a file that is damaged holds none."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        if self._seen != (seen := (stat.st_mtime_ns, stat.st_ino)):
            self._seen, self._keys = seen, {}
            try:
                self._keys = {key.sha256: key for key in read_keys(self._path)}
            except ConfigError:
                return None
        return self._keys.get(digest(secret))
