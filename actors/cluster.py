"""The local cluster: Redis, Ray with all three devices' resources on this machine, the actors
and the front door. Started, found again and ended here.

Every process that is started inherits KITBASH_CLUSTER_ID, so `down` ends all of them, HAProxy
included, and nothing that belongs to somebody else. Not here: several machines (node.py).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import psutil

from actors.haproxy import free_port, haproxy_environment
from kitbash_ray.config import CLUSTER_MARK, Settings, child_environment, ray_auth
from kitbash_ray.doctor import redis_trouble
from kitbash_ray.errors import ClusterError, StoreError
from kitbash_ray.knowledge.index import open_builder
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.redis_url import parse
from kitbash_ray.state import RECORDED_WITHIN_S, Running, read_record, record_file, running, write_record
from kitbash_ray.token import ensure_token

Tell = Callable[[str], None]

RAY_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")
RAY_START_S, FRONT_DOOR_S = 60.0, 120.0
#: What processes get to end by themselves, and then to be gone.
GRACE_S, STOP_S = 2.0, 5.0
TELL_EVERY_S = 5.0
#: Enough for indexes of a few hundred thousand grains; Ray's default is 30 % of the memory.
OBJECT_STORE_BYTES = 512 << 20
#: One resource of each kind: on one machine it is all three devices.
UNITS = 1


def up(settings: Settings, tell: Tell) -> Running:
    """Start everything that is not running, and return when the front door answers.

    Raises ClusterError (a port is taken, a process does not come up) after ending what it began.
    """
    if found := running(settings):
        if answers(found.url, 5):
            tell(f"already running since {time.strftime('%H:%M:%S', time.localtime(found.started_at))}")
            return _with_redis(settings, found, tell)
        tell("the last cluster does not answer any more; ending what is left of it")
    down(settings, tell)
    refuse_taken_ports(settings)
    refuse_wrong_login(settings, tell)
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    ensure_token(settings)
    cluster_id = secrets.token_hex(8)
    try:
        return _start(settings, cluster_id, tell)
    except BaseException:  # also Ctrl-C: nothing half-started stays
        end_processes(cluster_id, read_record(settings), tell)
        record_file(settings).unlink(missing_ok=True)
        raise


def _with_redis(settings: Settings, found: Running, tell: Tell) -> Running:
    """A running cluster whose private Redis died gets it back."""
    server = RedisServer(settings.state_dir)
    if found.role != "alone" or found.redis_pid is None or server.running():
        return found
    tell("its Redis is gone; starting it again")
    again = replace(found, redis_pid=server.start(child_environment(**{CLUSTER_MARK: found.id})))
    write_record(settings, again)
    return again


def down(settings: Settings, tell: Tell) -> bool:
    """End every process of the recorded cluster. Returns whether there was any."""
    found = read_record(settings)
    if found is None:
        return False
    ended = end_processes(found.id, found, tell)
    _forget_address(found)
    record_file(settings).unlink(missing_ok=True)
    return ended > 0


def _start(settings: Settings, cluster_id: str, tell: Tell) -> Running:
    environment = child_environment(**ray_environment(cluster_id))
    redis_pid = None
    if settings.embedded_redis:
        tell("starting Redis")
        redis_pid = RedisServer(settings.state_dir).start(environment)
    tell("starting Ray")
    port, metrics_port = free_port(), free_port()
    process = _spawn_ray(settings, environment, port, metrics_port)
    found = Running(
        id=cluster_id,
        url=f"http://{settings.kitbash_host}:{settings.kitbash_port}",
        dashboard=f"http://127.0.0.1:{settings.kitbash_dashboard_port}",
        address=f"127.0.0.1:{port}",
        ray_pid=process.pid,
        redis_pid=redis_pid,
        redis="embedded" if settings.embedded_redis else parse(settings.resolved_redis_url).shown,
        cartridges=str(settings.cartridges_dir),
        started_at=time.time(),
        metrics=metrics_url("127.0.0.1", metrics_port),
    )
    write_record(settings, found)  # before it is up, so that whatever happens can be ended
    launcher = spawn_launcher(settings, found, environment)  # it imports Ray while Ray starts
    try:
        with ThreadPoolExecutor(1) as aside:
            indexed = aside.submit(index_cartridges, settings, tell)
            wait_for_ray(settings, process)
            indexed.result()
        deploy(settings, launcher, tell)
    finally:
        launcher.kill()
        launcher.wait()
    if not answers(found.url, FRONT_DOOR_S):
        raise ClusterError(
            f"The front door does not answer at {found.url}; the logs are in /tmp/ray/session_latest/logs/serve."
        )
    return found


def index_cartridges(settings: Settings, tell: Tell) -> None:
    """Index the cartridges while Ray starts: the first time takes minutes, and an actor shows nothing of it."""
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            tell(f"indexing the cartridges, {done:,} of {total:,} texts")

    open_builder(settings).build(progress)


def ray_environment(cluster_id: str) -> dict[str, str]:
    """What Ray's processes need: the mark, HAProxy mode, and ports and paths of their own."""
    folder = Path("/tmp") / f"kitbash-{cluster_id}"  # short: it holds a Unix socket
    http_port = free_port()
    return {
        CLUSTER_MARK: cluster_id,
        **haproxy_environment(folder),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http_port + 200),
        "RAY_AUTH_MODE": ray_auth(),  # said to all: a driver with an address does not look for the token itself
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # the front door is a worker, and people wait for it
        # Each question is a call or two, of which the dashboard lists the last; Ray's own 100,000 are 60 MB of its GCS.
        "RAY_task_events_max_num_task_in_gcs": "5000",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "PYTHONUNBUFFERED": "1",
    }


def metrics_url(address: str, port: int) -> str:
    return f"http://{address}:{port}/metrics"


def _spawn_ray(settings: Settings, environment: dict[str, str], port: int, metrics_port: int) -> subprocess.Popen[bytes]:
    """Begin to start a head node. Ending the process that is returned ends the node."""
    resources = dict.fromkeys(chain.from_iterable(settings.resources.values()), UNITS)
    options = {
        "node-ip-address": "127.0.0.1", "port": str(port), "ray-client-server-port": str(free_port()),
        "dashboard-host": "127.0.0.1", "dashboard-port": str(settings.kitbash_dashboard_port),
        "dashboard-agent-listen-port": str(free_port()), "metrics-export-port": str(metrics_port),
        "resources": json.dumps(resources), "object-store-memory": str(OBJECT_STORE_BYTES),
        "num-cpus": str(os.cpu_count() or 1),
    }  # fmt: skip
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    with ray_log(settings).open("wb") as output:
        return subprocess.Popen(
            command + [f"--{name}={value}" for name, value in options.items()],
            env=environment,
            cwd="/",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def wait_for_ray(settings: Settings, process: subprocess.Popen[bytes], seconds: float = RAY_START_S) -> None:
    log = ray_log(settings)
    end = time.monotonic() + seconds
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            tail = " ".join(log.read_text(errors="replace").split()[-40:])
            raise ClusterError(f"Ray did not start; the end of {log}: {tail}")
        time.sleep(0.1)


def ray_log(settings: Settings) -> Path:
    return settings.state_dir / "ray.log"


def spawn_launcher(
    settings: Settings, found: Running, environment: dict[str, str], resources: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Begin a process that starts actors and front door once it is given the settings, and then goes away.

    `resources` are those that devices have or will have; see actors.launch.
    """
    with _launch_log(settings).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "actors.launch", found.address, str(settings.kitbash_port), *resources],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )


def deploy(settings: Settings, process: subprocess.Popen[bytes], tell: Tell) -> None:
    """Let the launcher do its work, and tell what it says."""
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError):  # it is dead already; its log says why
        process.stdin.write(settings.model_dump_json().encode())
        process.stdin.close()
    for line in process.stdout:
        tell(line.decode().rstrip())
    if process.wait() != 0:
        why = _last_line(_launch_log(settings).read_text(errors="replace"))
        raise ClusterError(f"The actors did not start: {why}")


def _launch_log(settings: Settings) -> Path:
    return settings.state_dir / "launch.log"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def refuse_taken_ports(settings: Settings) -> None:
    for port, name in ((settings.kitbash_port, "KITBASH_PORT"), (settings.kitbash_dashboard_port, "KITBASH_DASHBOARD_PORT")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError as error:
                raise ClusterError(f"Port {port} is taken{_holder(port)}: stop it, or set {name} to another port.") from error


def refuse_wrong_login(settings: Settings, tell: Tell) -> None:
    """A Redis that is not ours has to take the password now; that it is away may pass, and answers go on without it."""
    if settings.embedded_redis:
        return
    if trouble := redis_trouble(settings):
        if trouble.refused_login:
            raise StoreError(str(trouble))
        tell(str(trouble))


def _holder(port: int) -> str:
    """` by NAME (pid N)` of who listens on a port, as far as the system tells."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address: Any = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def answers(url: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health/ready", timeout=2).status_code == 200:
                return True
        time.sleep(0.1)
    return False


def end_processes(cluster_id: str, found: Running | None, tell: Tell) -> int:
    """Terminate the cluster's processes, kill what does not go. Returns how many there were."""
    ours = _processes(cluster_id, found)
    if not ours:
        return 0
    tell(f"ending {len(ours)} processes")
    # All at once: Ray's own order of ending waits for one after the other, a quarter of a minute in all.
    # What starts between two rounds (an actor that Ray brings back) is ended in the next.
    for stop, seconds in ((psutil.Process.terminate, GRACE_S), (psutil.Process.kill, STOP_S), (psutil.Process.kill, STOP_S)):
        for process in ours:
            with suppress(psutil.Error):
                stop(process)
        psutil.wait_procs(ours, timeout=seconds)
        ours = {process for process in ours | _processes(cluster_id, found) if process.is_running()}
    shutil.rmtree(f"/tmp/kitbash-{cluster_id}", ignore_errors=True)
    left = [process for process in ours if process.status() != psutil.STATUS_ZOMBIE]
    if left:
        raise ClusterError(f"These processes do not end: {', '.join(f'{p.name()} ({p.pid})' for p in left)}.")
    return len(ours) or 1


def _forget_address(found: Running) -> None:
    """Ray notes the last cluster's address for `ray.init` and `serve run`, which would wait for it in vain."""
    with suppress(OSError):
        if RAY_ADDRESS_FILE.read_text().strip().rpartition(":")[2] == found.address.rpartition(":")[2]:
            RAY_ADDRESS_FILE.unlink()


def _processes(cluster_id: str, found: Running | None) -> set[psutil.Process]:
    """All living processes of a cluster, but for this one.

    Most carry its mark in their environment. Redis and Ray's agents write their title over it,
    so whatever belongs to the sessions of the processes that were started counts as well.
    """
    sessions = {pid for pid in (found.ray_pid, found.redis_pid, found.ray_redis_pid) if pid} if found else set()
    began = found.started_at if found else 0.0
    ours = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            marked = process.environ().get(CLUSTER_MARK) == cluster_id
            in_session = os.getsid(process.pid) in sessions and process.create_time() >= began - RECORDED_WITHIN_S
            if (marked or in_session) and process.pid != os.getpid():
                ours.add(process)
    for process in list(ours):
        with suppress(psutil.Error):
            ours |= set(process.children(recursive=True))
    return {process for process in ours if process.pid != os.getpid()}
