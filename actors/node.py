"""One device of several: what it needs, starting its part of the cluster, ending it.

`ray up cluster.yaml` calls this on every device through `kitbash node`. The head runs Redis, Ray's
head, the front door and layer 0; any other device runs Ray with its own resources, and the head
starts actors there. Not here: all of it on one machine (cluster.py).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from actors import cluster as local
from actors.cluster import OBJECT_STORE_BYTES, UNITS, Tell
from actors.haproxy import free_port
from actors.kept import Kept, tell_down
from actors.ray_node import RAY
from kitbash_ray.config import CLUSTER_MARK, Settings, child_environment, load_settings, ray_token_file
from kitbash_ray.devices import (
    Device,
    Devices,
    cluster_settings,
    forget_ray,
    head_redis,
    ray_redis,
    ray_redis_password,
    redis_password_file,
    resolved,
)
from kitbash_ray.errors import ClusterError
from kitbash_ray.state import Running, read_record, running, write_record
from kitbash_ray.token import ensure_secret, find_secret, token_file

#: Ray on a small device that does other things as well.
JOIN_S = 180.0
#: How often it is looked whether this device's part is to end.
LOOK_S = 1.0
#: Where Ray's launcher puts the file that its autoscaler on the head works with.
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")


def setup(devices: Devices, tell: Tell) -> None:
    """Make the secrets of the cluster on the head; on the other devices look whether `ray up` has copied them."""
    settings = load_settings(**devices.settings)
    head = devices.here().head
    for path, what in (
        (ray_token_file(), "Ray's token"),
        (redis_password_file(settings), "the password of Redis"),
        (token_file(settings), "the front door's token"),
    ):
        if head:
            ensure_secret(path, secrets.token_hex(32))
        else:
            find_secret(path)
        tell(f"{what} lies in {path}")


def start_head(devices: Devices, tell: Tell) -> Running:
    """Start Redis, Ray and the layers on the head, and return when all devices do their part.

    Raises ClusterError when this is not the head, a port is taken or something does not come up.
    """
    device = devices.here()
    if not device.head:
        raise ClusterError(f"This machine is not the head, {devices.head.address} is: `kitbash node worker` starts this one.")
    settings = cluster_settings(devices)
    if (found := running(settings)) and found.role == "head":
        tell("already running")
        return found
    local.down(settings, tell)
    local.refuse_taken_ports(settings)
    forget_ray(settings)
    environment = _environment(settings, head=True)
    found, keeper = _start_keeper(settings, device, devices.head.address, environment, tell)
    try:
        found = _with_redis(settings, found, environment, tell)
        _let_keep(keeper, found, settings, device, ["--head", *_flags(_head_options(settings))])
        local.index_cartridges(settings, tell)
        local.wait_for_ray(settings, keeper, JOIN_S)
        resources = [resource for each in devices.all for resource in each.resources]
        local.deploy(settings, local.spawn_launcher(settings, found, environment, resources), tell)
        if not local.answers(found.url, local.FRONT_DOOR_S):
            raise ClusterError(f"The front door does not answer at {found.url}; `kitbash doctor` looks for the reason.")
    except BaseException:  # also Ctrl-C: nothing half-started stays
        stop(devices, tell)
        raise
    return found


def start_worker(devices: Devices, head: str, tell: Tell) -> Running:
    """Start Ray with this device's resources, joining the head; it is kept running until the cluster ends."""
    device = devices.here()
    settings = cluster_settings(devices)
    if (found := running(settings)) and found.role == "worker":
        tell("already running")  # its keeper has it join again, which takes less than starting anew
        return found
    local.down(settings, tell)
    found, keeper = _start_keeper(settings, device, head, _environment(settings, head=False), tell)
    try:
        _let_keep(keeper, found, settings, device, [f"--address={found.address}"])
        local.wait_for_ray(settings, keeper, JOIN_S)
    except BaseException:  # also Ctrl-C: nothing half-started stays
        stop(devices, tell)
        raise
    return found


def stay(devices: Devices, start: Callable[[], Running], tell: Tell) -> None:
    """Start this device's part with `start`, and stay as long as it runs: what a container needs.

    SIGTERM ends it. Raises ClusterError when it has ended by itself.
    """
    asked = threading.Event()

    def end(*_: object) -> None:
        asked.set()  # Python drops what a handler raises while an object is being deleted
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    stop(devices, tell)  # what a container that was killed has written down is not true any more
    try:
        found = start()
        with suppress(psutil.NoSuchProcess):  # gone already
            process = psutil.Process(found.ray_pid)
            while not asked.is_set() and process.is_running():
                with suppress(psutil.TimeoutExpired):
                    process.wait(timeout=LOOK_S)
    finally:
        stop(devices, tell)
    if not asked.is_set():
        raise ClusterError(f"Ray has ended on this device; {local.ray_log(cluster_settings(devices))} says why.")


def stop(devices: Devices, tell: Tell) -> bool:
    """End this device's part; on the head that of all devices. Returns whether there was any."""
    settings = load_settings(**devices.settings)
    found = read_record(settings)
    if found and found.role == "head":
        tell(f"{tell_down(cluster_settings(devices))} other devices were told to end")
    ended = local.down(settings, tell)
    forget_ray(settings)
    return ended


def _environment(settings: Settings, head: bool) -> dict[str, str]:
    """What Ray's processes on a device need; of several devices also that Ray asks for its token."""
    cluster_id = secrets.token_hex(8)
    extra = {
        "RAY_AUTH_MODE": "token",
        # With its second version of the autoscaler, Ray counts the head as a worker and leaves the last device out.
        "RAY_enable_autoscaler_v2": "0",
        # The head misses a Ray that died after 5 s, and one whose link was cut after 30 s, as that Ray misses the
        # head. Then questions are not sent there any more, and when the link is back the device joins anew, over
        # connections that are not waiting for their next retransmission.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
        # The device's own keeper starts its Ray again. Only for one that was started anew, which has no keeper, the
        # launcher logs in and starts all of it; sooner it would take the time that the first one needs.
        "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "90",
    }
    if head:
        # Where the GCS keeps its state, so that it may die. A name of its own for each cluster: no other's state is taken up.
        extra["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{settings.kitbash_ray_redis_port}"
        extra["RAY_external_storage_namespace"] = cluster_id
    return child_environment(**local.ray_environment(cluster_id) | extra)


def _head_options(settings: Settings) -> dict[str, str]:
    options = {"port": str(settings.kitbash_ray_port), "ray-client-server-port": str(free_port()), "dashboard-host": "127.0.0.1",
               "dashboard-port": str(settings.kitbash_dashboard_port),
               "redis-password": ray_redis_password(settings)}  # fmt: skip
    if BOOTSTRAP.expanduser().exists():
        options["autoscaling-config"] = str(BOOTSTRAP.expanduser())
    return options


def _start_keeper(
    settings: Settings, device: Device, head: str, environment: dict[str, str], tell: Tell
) -> tuple[Running, subprocess.Popen[bytes]]:
    """Start the process that keeps Ray running, and write it down. It begins when it is told what to keep."""
    tell(f"starting Ray at {device.address} with {', '.join(device.resources) or 'no resources'}")
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    local.ray_log(settings).write_bytes(b"")
    with (settings.state_dir / "keeper.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.keeper"],
            env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    found = Running(
        id=environment[CLUSTER_MARK],
        url=settings.url,
        dashboard=f"http://127.0.0.1:{settings.kitbash_dashboard_port}, on {head}",
        address=f"{head}:{settings.kitbash_ray_port}",
        ray_pid=process.pid,
        redis_pid=None,
        redis=f"{settings.redis_host}:{settings.redis_port}",
        cartridges=str(settings.cartridges_dir),
        started_at=time.time(),
        role="head" if device.head else "worker",
        metrics=local.metrics_url(resolved(device.address), free_port()),
    )
    write_record(settings, found)
    return found, process


def _with_redis(settings: Settings, found: Running, environment: dict[str, str], tell: Tell) -> Running:
    """Start Ray's Redis, and that of the cluster unless the settings name another one."""
    found = replace(found, ray_redis_pid=ray_redis(settings).start(environment))
    write_record(settings, found)
    if server := head_redis(settings):
        tell(f"starting Redis at {settings.redis_host}:{settings.redis_port}")
        found = replace(found, redis_pid=server.start(environment))
        write_record(settings, found)
    return found


def _let_keep(keeper: subprocess.Popen[bytes], found: Running, settings: Settings, device: Device, flags: list[str]) -> None:
    """Tell the keeper how Ray is started on this device."""
    metrics = urlsplit(found.metrics)  # Ray takes no names of its own nodes
    options = {"node-ip-address": str(metrics.hostname), "resources": json.dumps(dict.fromkeys(device.resources, UNITS)),
               "object-store-memory": str(OBJECT_STORE_BYTES), "num-cpus": str(os.cpu_count() or 1),
               "metrics-export-port": str(metrics.port)}  # fmt: skip
    command = [*RAY, "start", "--disable-usage-stats", *flags, *_flags(options)]
    kept = Kept(found.id, None if device.head else found.address, command, settings)
    assert keeper.stdin
    keeper.stdin.write(kept.to_json().encode())
    keeper.stdin.close()


def _flags(options: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]
