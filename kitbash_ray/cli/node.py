"""`kitbash node`: one device of several. `ray up cluster.yaml` calls these commands on each of them."""

from __future__ import annotations

from collections.abc import Callable

import typer

from kitbash_ray.cli.console import errors, output
from kitbash_ray.devices import Devices, read_devices
from kitbash_ray.state import Running

app = typer.Typer(help="One device of several; `ray up cluster.yaml` calls these.", no_args_is_help=True)


@app.command()
def setup() -> None:
    """Make what the devices share and nobody else may know: Ray's token, the password of Redis, the front door's token."""
    from actors import node

    node.setup(read_devices(), _tell)


BLOCK = typer.Option(False, "--block", help="Stay until it ends, and end it on SIGTERM: for containers.")


@app.command()
def head(block: bool = BLOCK) -> None:
    """Start Redis, Ray, the layers and the front door on device A, and wait for the other devices."""
    from actors import node

    devices = read_devices()

    def start() -> Running:
        found = node.start_head(devices, _tell)
        output.print(f"front door  {found.url}", soft_wrap=True)
        return found

    _run(devices, start, block)


@app.command()
def worker(address: str = typer.Option(..., "--head", help="Address of device A."), block: bool = BLOCK) -> None:
    """Start Ray on this device with the resources that cluster.yaml gives it, and join the head."""
    from actors import node

    devices = read_devices()

    def start() -> Running:
        found = node.start_worker(devices, address, _tell)
        output.print(f"joined {found.address}", soft_wrap=True)
        return found

    _run(devices, start, block)


@app.command()
def stop() -> None:
    """End this device's part of the cluster; on device A that of every device."""
    from actors import node

    output.print("stopped" if node.stop(read_devices(), _tell) else "nothing was running")


def _run(devices: Devices, start: Callable[[], Running], block: bool) -> None:
    from actors import node

    if block:
        node.stay(devices, start, _tell)
    else:
        start()


def _tell(what: str) -> None:
    errors.print(what, soft_wrap=True, highlight=False, markup=False)
