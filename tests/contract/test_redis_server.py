"""The Redis of a cluster of several devices: a port, and a password that stands on no command line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from actors.haproxy import free_port
from kitbash_ray.redis_server import Listen, RedisServer


@pytest.fixture
def listening() -> Iterator[tuple[Listen, psutil.Process, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))  # short: a socket's path has 107 bytes
    listen = Listen("127.0.0.1", free_port(), "s3cret")
    server = RedisServer(folder, listen)
    process = psutil.Process(server.start(dict(os.environ)))
    assert server.running()
    yield listen, process, folder
    process.terminate()
    process.wait(10)
    shutil.rmtree(folder)


def test_whoever_knows_the_password_gets_in_and_nobody_else(listening: tuple[Listen, psutil.Process, Path]) -> None:
    listen, _, folder = listening
    with Redis(port=listen.port, password="s3cret") as client:
        assert client.ping()
    with Redis(port=listen.port) as client, pytest.raises(AuthenticationError):
        client.ping()
    assert not RedisServer(folder).running()


def test_the_password_is_only_in_a_file_of_its_owner(listening: tuple[Listen, psutil.Process, Path]) -> None:
    _, process, folder = listening
    assert "s3cret" not in " ".join(process.cmdline())
    assert (folder / "redis" / "redis.conf").stat().st_mode & 0o077 == 0
