"""The doctor's looks that need the network: ports, and a cluster that has died."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kitbash_ray.cli import app
from kitbash_ray.config import load_settings
from kitbash_ray.doctor import Finding, port_finding
from kitbash_ray.state import Running, write_record

GONE = Running("id", "http://127.0.0.1:9", "", "127.0.0.1:9", 1, None, "", "", 0.0)


def test_a_port_is_found_open_or_closed() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not port_finding("port", "a", "127.0.0.1", port, "open it").ok
        listener.listen()
        assert port_finding("port", "a", "127.0.0.1", port, "open it") == Finding(
            "port", "a", True, f"127.0.0.1:{port} takes connections"
        )


def test_the_command_ends_with_1_and_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0  # no cluster: nothing is wrong with that
    settings = load_settings()
    settings.state_dir.mkdir(parents=True)
    write_record(settings, GONE)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert {finding["check"] for finding in told["findings"] if not finding["ok"]} == {"front door", "ray", "redis"}
