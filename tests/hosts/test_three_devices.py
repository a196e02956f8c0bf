"""Three devices as a person has them: started over ssh, asked, cut off and ended. In this order."""

from __future__ import annotations

import json
import os
import signal
import time

from tests.cluster.harness import ATP, UNKNOWN, eventually, fact_text

from .asking import BACK_S, GIVEN_UP_S, SLACK_S, TWO_FACTS, all_ready, asking, outcomes, serves_anew, tell
from .bed import Host
from .devices import DOWN_S, KOBOLD_TIMEOUT_MS, UP_S, ThreeDevices


def test_each_layer_runs_on_the_device_it_is_pinned_to(devices: ThreeDevices) -> None:
    tell("ray up, on hosts that are set up, until every layer is ready", devices.took_s)
    layers = devices.layers()
    nodes = {name: layers[name].get("node") for name in ("grain", "bitnet", "cartridge", "kobold")}
    assert nodes == {"grain": "device-a", "bitnet": "device-b", "cartridge": "device-b", "kobold": "device-c"}
    assert {layers[name]["state"] for name in nodes} == {"ready"}


def test_a_question_at_device_a_is_answered_by_layer_4_on_device_c(devices: ThreeDevices) -> None:
    answer = devices.ask(UNKNOWN)
    assert (answer["status"], answer["layer"]) == ("answered", "kobold")
    assert answer["recorded"] is True


def test_layer_2_on_device_b_answers(devices: ThreeDevices) -> None:
    answer = devices.ask(TWO_FACTS)
    assert (answer["status"], answer["layer"]) == ("answered", "cartridge")
    assert len(answer["sources"]) >= 2


def test_ray_and_redis_refuse_whoever_does_not_know_their_secrets(devices: ThreeDevices) -> None:
    pinged = devices.on(devices.b, f".venv/bin/python -c \"import redis; redis.Redis('{devices.a.address}').ping()\"")
    assert "AuthenticationError" in pinged.stderr
    command = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64} .venv/bin/ray status --address {devices.a.address}:6380"
    assert devices.on(devices.b, command).returncode != 0


def test_the_doctor_finds_three_healthy_devices(devices: ThreeDevices) -> None:
    done = devices.on(devices.a, ".venv/bin/kitbash doctor --json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert {finding["node"] for finding in findings} >= {"device-a", "device-b", "device-c"}


def test_a_killed_actor_comes_back_and_questions_go_on_meanwhile(devices: ThreeDevices) -> None:
    before = int(devices.layers()["kobold"]["pid"])
    with asking(devices, "What is ATP?") as known, asking(devices, UNKNOWN) as unknown:
        eventually(lambda: known.answers and unknown.answers, 30, "both are answered")
        os.kill(devices.c.outside_pid(before), signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: serves_anew(devices, "kobold", before), BACK_S, "layer 4 is back")
        tell("kobold killed, until its heartbeat comes from a new process", time.monotonic() - killed)
        eventually(lambda: unknown.answers and unknown.answers[-1]["layer"] == "kobold", BACK_S, "it answers")
        tell("kobold killed, until it answers", time.monotonic() - killed)
    assert known.errors == unknown.errors == []
    assert {answer["answer"] for answer in known.answers} == {fact_text(ATP)}


def test_a_device_that_was_cut_off_is_used_again(devices: ThreeDevices) -> None:
    eventually(lambda: devices.ask(UNKNOWN)["layer"] == "kobold", BACK_S, "layer 4 answers")
    devices.c.cut()
    try:
        began = time.monotonic()
        answer = devices.ask(UNKNOWN)
        took = time.monotonic() - began
        tell(f"a question for layer 4 while its device is cut off, its timeout being {KOBOLD_TIMEOUT_MS / 1000:.0f} s", took)
        assert outcomes(answer)["kobold"] in ("timeout", "failed")
        assert took < KOBOLD_TIMEOUT_MS / 1000 + SLACK_S
        assert devices.ask("What is ATP?")["answer"] == fact_text(ATP)
        eventually(lambda: devices.layers()["kobold"]["state"] == "gone", SLACK_S, "its heartbeat is missed")
        assert "port of Ray" in _wrong(devices, devices.c)
        eventually(lambda: {"device", "resource"} <= _wrong(devices, devices.a), GIVEN_UP_S, "Ray on the head has given it up")
    finally:
        devices.c.restore()
    restored = time.monotonic()
    eventually(lambda: devices.ask(UNKNOWN)["layer"] == "kobold", BACK_S + KOBOLD_TIMEOUT_MS / 1000, "layer 4 answers again")
    tell(f"link of device C restored after {restored - began:.0f} s, until layer 4 answers", time.monotonic() - restored)


def _wrong(devices: ThreeDevices, host: Host) -> set[str]:
    """What the doctor on a host, cut off or not, finds wrong there."""
    done = devices.inside(host, "cd ~/kitbash && .venv/bin/kitbash doctor --json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout, done.stderr
    return {finding["check"] for finding in json.loads(done.stdout)["findings"] if not finding["ok"]}


def test_ray_up_again_starts_all_of_it_anew(devices: ThreeDevices) -> None:
    before = {name: layer.get("since") for name, layer in devices.layers().items()}
    began = time.monotonic()
    devices.ray("up", "-y", "--no-config-cache", "cluster.yaml", seconds=UP_S)
    tell("ray up over a running cluster", time.monotonic() - began)
    after = devices.layers()
    assert all_ready(devices)
    assert all(after[name]["since"] != before[name] for name in ("grain", "bitnet", "cartridge", "kobold"))
    assert devices.ask(UNKNOWN)["layer"] == "kobold"


def test_ray_down_leaves_nothing_running_on_any_device(devices: ThreeDevices) -> None:
    began = time.monotonic()
    devices.ray("down", "-y", "cluster.yaml", seconds=DOWN_S)
    for host in (devices.a, devices.b, devices.c):
        eventually(lambda host=host: not _left(host), DOWN_S, f"{host.name} is empty")
        tell(f"ray down, until {host.name} is empty", time.monotonic() - began)


def _left(host: Host) -> list[str]:
    return [f"{process.name()} ({process.pid})" for process in host.processes()]
