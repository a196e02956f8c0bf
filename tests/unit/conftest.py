"""Unit tests start no Ray and open no network connection; what tries to, fails at once."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("A unit test must not start Ray; this one belongs to tests/cluster.")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, _only_unix(getattr(socket.socket, name)))


def _only_unix(original: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"A unit test must not use the network ({address!r}).")
        return original(self, address)

    return guarded
