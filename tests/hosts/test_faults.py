"""One process after the other dies, or a link or a Redis gets bad: it is mended without anybody's help.

What is killed is what runs under Kitbash: Ray's processes, HAProxy, Redis. The layers' own processes
and a link that is cut are in test_three_devices.py.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence

import pytest

from tests.cluster.harness import ATP, UNKNOWN, eventually, fact_text

from .asking import BACK_S, TWO_FACTS, all_ready, asking, back, recorded, serves_anew, tell
from .bed import Host, inside_pid
from .devices import ThreeDevices

#: How long the blackboard's Redis does not answer.
STOPPED_S = 30.0
#: How often a question comes while a link is bad.
TIMES = 10


def kill(host: Host, *whats: str) -> list[int]:
    """Kill what has each of `whats` in its command line. Returns the numbers of the killed."""
    killed = []
    for what in whats:
        found = host.running(what)
        assert found, f"no {what} runs on {host.name}"
        for process in found:
            process.kill()
            killed.append(process.pid)
    return killed


def anew(host: Host, whats: Sequence[str], killed: list[int]) -> bool:
    """Whether each of `whats` runs on the host, as another process."""
    running = [host.running(what) for what in whats]
    return all(running) and not {process.pid for found in running for process in found} & {*killed}


@pytest.mark.parametrize("what", ["gcs/gcs_server", "redis-server 127.0.0.1"], ids=["the GCS", "its Redis"])
def test_rays_head_loses_its_state_and_has_it_again_and_nobody_notices(devices: ThreeDevices, what: str) -> None:
    pids = devices.pids()
    with asking(devices, "What is ATP?") as known, asking(devices, UNKNOWN) as unknown, asking(devices, TWO_FACTS) as two:
        eventually(lambda: known.answers and unknown.answers and two.answers, 30, "all are answered")
        killed = kill(devices.a, what)
        began = time.monotonic()
        eventually(lambda: anew(devices.a, [what, "gcs/gcs_server"], killed), BACK_S, f"{what} runs again")
        tell(f"{what} killed, until it runs again", time.monotonic() - began)
        assert devices.pids() == pids
        # The GCS starts actors: that it knows this one shows that its state is there.
        devices.c.running("ray::Kobold")[0].kill()
        eventually(lambda: serves_anew(devices, "kobold", pids["kobold"]), BACK_S, "an actor that dies comes back")
        tell(f"{what} killed, until an actor that was killed then is back", time.monotonic() - began)
    assert known.errors == unknown.errors == two.errors == []
    assert {answer["answer"] for answer in known.answers} == {fact_text(ATP)}
    others = ("grain", "bitnet", "cartridge")
    assert devices.pids(*others) == {name: pids[name] for name in others}
    assert devices.on(devices.a, ".venv/bin/kitbash status").returncode == 0


def test_what_watches_and_steers_on_the_head_dies_and_comes_back_unnoticed(devices: ThreeDevices) -> None:
    whats = ["ray::ServeController", "dashboard/dashboard.py", "log_monitor.py", "_private/monitor.py"]
    pids = devices.pids()
    with asking(devices, "What is ATP?") as known:
        killed = kill(devices.a, *whats)
        began = time.monotonic()
        eventually(lambda: anew(devices.a, whats, killed), BACK_S, "all of them run again")
        tell("Serve's controller, dashboard, log monitor and autoscaler killed, until all run again", time.monotonic() - began)
    assert known.errors == []
    assert devices.pids() == pids


@pytest.mark.parametrize("what", ["bin/haproxy", "ray::HAProxyManager", "ray::ServeReplica"])
def test_a_part_of_the_front_door_dies_and_it_answers_again(devices: ThreeDevices, what: str) -> None:
    pids = devices.pids()
    killed = kill(devices.a, what)
    began = time.monotonic()
    eventually(lambda: anew(devices.a, [what], killed) and back(devices), BACK_S, "the front door answers")
    tell(f"{what} killed, until the front door answers", time.monotonic() - began)
    assert devices.pids() == pids


@pytest.mark.parametrize("what", ["raylet/raylet", "ray::DashboardAgent"], ids=["the raylet", "its agent"])
def test_ray_that_died_on_device_b_is_started_again(devices: ThreeDevices, what: str) -> None:
    """The raylet ends with its agent, in the way that it ends when it is told to stop."""
    before = devices.pids("cartridge", "kobold", "grain")
    kill(devices.b, what)
    began = time.monotonic()
    eventually(lambda: serves_anew(devices, "cartridge", before["cartridge"]), BACK_S * 2, "layer 2 is back")
    tell(f"{what} of device B killed, until layer 2 is ready", time.monotonic() - began)
    eventually(lambda: all_ready(devices), BACK_S, "layer 1 too")
    assert devices.layers()["cartridge"]["node"] == "device-b"
    assert devices.pids("kobold", "grain") == {name: before[name] for name in ("kobold", "grain")}


def test_the_heads_raylet_dies_and_all_of_the_head_is_started_again(devices: ThreeDevices) -> None:
    on_others = devices.pids("bitnet", "cartridge", "kobold")
    kill(devices.a, "raylet/raylet")
    began = time.monotonic()
    eventually(lambda: not back(devices), 10, "the front door went with it")
    eventually(lambda: back(devices), BACK_S * 2, "the front door answers")
    tell("raylet of the head killed, until the front door answers", time.monotonic() - began)
    eventually(lambda: all_ready(devices), BACK_S, "every layer is ready")
    assert devices.pids(*on_others) == on_others
    assert devices.ask(UNKNOWN)["layer"] == "kobold"


def test_a_redis_that_died_is_started_again_with_what_it_held(devices: ThreeDevices) -> None:
    asked = devices.ask("What is ATP?")["query_id"]
    eventually(lambda: recorded(devices, asked), 10, "the question is on the blackboard")
    devices.ask(UNKNOWN)
    kill(devices.a, f"redis-server {devices.a.address}")
    killed = time.monotonic()
    assert devices.ask("What is ATP?")["answer"] == fact_text(ATP)
    eventually(lambda: devices.ask("What is ATP?")["recorded"], BACK_S, "answers are recorded again")
    tell("Redis killed, until answers are recorded again", time.monotonic() - killed)
    eventually(lambda: recorded(devices, asked), 10, "what it held is there")
    eventually(lambda: all_ready(devices), BACK_S, "every heartbeat is back")


def test_a_redis_that_does_not_answer_for_a_while_is_missed_by_nobody(devices: ThreeDevices) -> None:
    pids = devices.pids()
    [server] = devices.a.running(f"redis-server {devices.a.address}")
    rays = ray_processes(devices.a)
    with asking(devices, "What is ATP?") as known, asking(devices, UNKNOWN) as unknown, asking(devices, TWO_FACTS) as two:
        eventually(lambda: known.answers and unknown.answers and two.answers, 30, "all are answered")
        server.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: not known.answers[-1]["recorded"], BACK_S, "answers say that they are not recorded")
            threading.Event().wait(STOPPED_S)  # the fault lasts as long as it is said to
            assert not known.answers[-1]["recorded"]
        finally:
            server.send_signal(signal.SIGCONT)
        began = time.monotonic()
        eventually(lambda: known.answers[-1]["recorded"], BACK_S, "answers are recorded again")
        tell(f"Redis stopped for {STOPPED_S:.0f} s, until answers are recorded again", time.monotonic() - began)
    assert known.errors == unknown.errors == two.errors == []
    eventually(lambda: all_ready(devices), BACK_S, "every heartbeat is back")
    assert devices.pids() == pids
    assert ray_processes(devices.a) == rays


def ray_processes(host: Host) -> set[int | None]:
    return {inside_pid(process) for what in ("gcs/gcs_server", "raylet/raylet") for process in host.running(what)}


def test_a_bad_link_costs_time_and_no_answer(devices: ThreeDevices) -> None:
    with devices.b.disturbed(delay_ms=100, loss=0.05):
        began = time.monotonic()
        answers = [devices.ask(question) for _ in range(TIMES) for question in (TWO_FACTS, UNKNOWN)]
        took = (time.monotonic() - began) / len(answers)
    tell("a question for layer 2 or 4 with device B's link 100 ms late in each direction and 5 % lost", took)
    assert {answer["status"] for answer in answers} <= {"answered", "abstained"}
    assert all(answer["recorded"] for answer in answers)
    eventually(lambda: devices.ask(TWO_FACTS)["layer"] == "cartridge", BACK_S, "layer 2 answers")
