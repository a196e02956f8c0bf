"""The Redis of a cluster of several devices: a port, and a password that stands on no command line."""

from __future__ import annotations

import asyncio
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
from kitbash_ray.redis_client import connect
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


async def test_a_client_that_was_connected_before_a_restart_needs_no_second_attempt() -> None:
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))
    listen = Listen("127.0.0.1", free_port(), "s3cret")
    client = connect(f"redis://:s3cret@127.0.0.1:{listen.port}")
    try:
        for _ in range(2):
            pid = await asyncio.to_thread(RedisServer(folder, listen).start, dict(os.environ))
            process = psutil.Process(pid)
            try:
                assert await client.xrange("nothing") == []
            finally:
                process.kill()
                process.wait(10)
    finally:
        await client.aclose()
        shutil.rmtree(folder)
