"""Real servers for the engines over HTTP, each over a tiny GGUF and on a port of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from . import koboldcpp_server as kobold

#: The window that every server is started with.
WINDOW = 512
START_S = 60


@contextmanager
def koboldcpp_server(gguf: Path) -> Iterator[str]:
    """The address of a small KoboldCpp over `gguf`."""
    with kobold.running(gguf, window=WINDOW) as server:
        yield server.url


@contextmanager
def openai_server(gguf: Path) -> Iterator[str]:
    """The address of llama-cpp-python's own server over `gguf`, a process of its own."""
    # Its port is bound here and handed over open, so that nobody else can take it in between
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        os.set_inheritable(listening.fileno(), True)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        command = [sys.executable, "-c", SERVE, str(gguf), str(WINDOW), str(listening.fileno())]
        process = subprocess.Popen(
            command,
            pass_fds=[listening.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # a whole environment would hand it HOST, PORT, MODEL and the like as its settings
            env={
                name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "HOME", "LD_LIBRARY_PATH")
            },
        )
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


#: `python -m llama_cpp.server` on a socket that is open already.
SERVE = """
import sys, uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
model = ModelSettings(model=sys.argv[1], model_alias="tiny", n_ctx=int(sys.argv[2]), n_threads=1, verbose=False)
app = create_app(server_settings=ServerSettings(interrupt_requests=False), model_settings=[model])
uvicorn.run(app, fd=int(sys.argv[3]), log_level="error")
"""


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """The socket takes connections before there is a server, so a request waits until it is answered."""
    deadline = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=START_S) as client:
        while True:
            try:
                client.get(f"{url}/v1/models").raise_for_status()
                return
            except httpx.HTTPError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("llama-cpp-python's server did not start: is llama-cpp-python[server] there?") from error
