"""`kitbash node`: one device of several. `ray up cluster.yaml` calls these commands on each of them."""

from __future__ import annotations

import typer

from kitbash_ray.cli.console import errors, output
from kitbash_ray.devices import read_devices

app = typer.Typer(help="One device of several; `ray up cluster.yaml` calls these.", no_args_is_help=True)


@app.command()
def setup() -> None:
    """Make what the devices share and nobody else may know: Ray's token, the password of Redis, the front door's token."""
    from actors import node

    node.setup(read_devices(), _tell)


@app.command()
def head() -> None:
    """Start Redis, Ray, the layers and the front door on device A, and wait for the other devices."""
    from actors import node

    found = node.start_head(read_devices(), _tell)
    output.print(f"front door  {found.url}", soft_wrap=True)


@app.command()
def worker(address: str = typer.Option(..., "--head", help="Address of device A.")) -> None:
    """Start Ray on this device with the resources that cluster.yaml gives it, and join the head."""
    from actors import node

    found = node.start_worker(read_devices(), address, _tell)
    output.print(f"joined {found.address}", soft_wrap=True)


@app.command()
def stop() -> None:
    """End this device's part of the cluster; on device A that of every device."""
    from actors import node

    output.print("stopped" if node.stop(read_devices(), _tell) else "nothing was running")


def _tell(what: str) -> None:
    errors.print(what, soft_wrap=True, highlight=False, markup=False)
