"""`kitbash worker`: serve a layer of a cluster elsewhere from this machine."""

from __future__ import annotations

import asyncio
import platform
import re
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError

from kitbash_ray import __version__
from kitbash_ray.cli.console import errors, start_log
from kitbash_ray.config import load_settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.state import front_door_url
from kitbash_ray.token import find_token
from kitbash_ray.work_types import ServedLayer, WorkerIn

if TYPE_CHECKING:
    from kitbash_ray.worker import Worker


def worker(
    layer: ServedLayer = typer.Option(..., help="The layer to serve.", show_default=False),
    front_door: str | None = typer.Option(
        None, help="Address of the front door, https://... [default: KITBASH_URL, else this machine's]", show_default=False
    ),
    token: str | None = typer.Option(
        None,
        help="What `kitbash key add NAME --worker LAYER` printed. [default: KITBASH_TOKEN, which no list of processes shows]",
        show_default=False,
    ),
    name: str | None = typer.Option(
        None, help="Its name, one for each worker of a layer. [default: made of this machine's]", show_default=False
    ),
    ca: Path | None = typer.Option(
        None, help="Certificate (PEM) that signed the front door's, if no public authority did.", show_default=False
    ),
    insecure: bool = typer.Option(False, "--insecure", help="Allow http:// to another machine: the token travels in clear."),
) -> None:
    """Serve a layer of a cluster elsewhere from this machine, over HTTPS only; neither Ray nor Redis is needed here.

    The model is that of the settings here. Ctrl-C ends it after the question at hand, a second one at once.

    kitbash worker --layer bitnet --front-door https://kitbash.example
    """
    from kitbash_ray.direct import open_calibration
    from kitbash_ray.one_layer import model_of, open_layer
    from kitbash_ray.worker import Door, Worker

    settings = load_settings(kitbash_url=front_door, kitbash_token=token)
    start_log(settings)
    calibration = open_calibration(settings)
    try:
        me = WorkerIn(worker=name or _own_name(), version=__version__, calibration=calibration.version)
    except ValidationError:
        raise ConfigError(f"{name!r} cannot be a worker's name: take letters, digits, dots and hyphens, at most 64.") from None
    door = Door(front_door_url(settings), find_token(settings), layer, ca=ca, insecure=insecure)
    served = open_layer(layer, settings, calibration)
    asyncio.run(_until_told(Worker(served, door, me, lambda: model_of(served), _tell)))


async def _until_told(serving: Worker) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    running = asyncio.ensure_future(serving.run())

    def told() -> None:
        if serving.stopping:
            running.cancel()
        serving.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told)
    await asyncio.wait((running,))
    if running.cancelled():
        raise KeyboardInterrupt
    running.result()


def _own_name() -> str:
    """This machine's name, and four digits of its network card: freshly installed machines are often called the same."""
    node = re.sub(r"[^A-Za-z0-9-]+", "-", platform.node()).strip("-") or "worker"
    return f"{node[:50]}-{uuid.getnode() & 0xFFFF:04x}"


def _tell(what: str) -> None:
    errors.print(what, soft_wrap=True, highlight=False, markup=False)
