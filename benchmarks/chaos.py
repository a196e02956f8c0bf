"""What is lost when parts of a cluster of three devices die, stand still or lose their link.

Three simulated hosts on this machine (root, the tools of tests/hosts), a real `ray up`, two
front-door replicas, a tiny random model as layer 4. Questions come at a fixed rate for layers 0, 2
and 4 (8 to 1 to 1), half of them waited for and half handed in (load.py). Every fault happens under that load,
several times; after each one the load goes on until all is normal: every layer ready and admitted,
one question for each of the three layers answered by it, and recorded.

A waiting client's failure counts as `later` if it began to wait after the fault. Layer 4's model
writes nonsense, so only answers that state a confidence are judged right or wrong.

    python -m benchmarks.chaos [--quick] [--only NAME,NAME] [--times 5] [--rate 20]
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import httpx
import psutil

from benchmarks.common import finish, percentile, print_table
from benchmarks.load import Known, Load, Traffic
from tests.hosts.bed import Host, missing
from tests.hosts.devices import ThreeDevices, three_devices

TARGETS = {
    "lost": ("<=", 0),
    "answered_twice": ("<=", 0),
    "wrong": ("<=", 0),
    "failed_later": ("<=", 0),
    "recovery_s_max": ("<=", 15.0),
    "used_again_s_max": ("<=", 10.0),
}
#: One question for each of three layers, and how often each comes: one that goes through all layers costs
#: two cores, which are all three devices here, a tenth of a second.
KINDS = (
    Known("What is ATP?", "grain", "biochemistry:atp-energy-currency"),
    Known("What is the default port of Redis and of the Ray dashboard?", "cartridge"),
    Known("Who won the 1998 football World Cup?", "kobold"),
)
LAYERS = ("grain", "bitnet", "cartridge", "kobold")
MIX = (*(KINDS[0],) * 8, KINDS[1], KINDS[2])
#: The random models say as little as a student does, which stops when its answer is clear.
SETTINGS = {"kitbash_replicas": 2, "bitnet_max_tokens": 4, "kobold_max_tokens": 4, "kobold_timeout": 4000}
#: Seconds of load before a fault, that a fault lasts, and within which all has to be normal again.
BEFORE_S, CUT_S, STOPPED_S, NORMAL_S = 3.0, 60.0, 30.0, 120.0
#: Normal for so long, so that a fault that was not noticed yet is not taken for one that is over.
STEADY_S = 2.0


@dataclass(frozen=True)
class Fault:
    """`strikes` breaks something; what mends itself is broken at its beginning, the rest until its end.

    `bound` is the metric that the time until all is normal again counts for: of a kill `recovery_s_max`,
    of a device that was cut off `used_again_s_max`. The others have none, as what was put off comes at once then.
    """

    name: str
    strikes: Callable[[ThreeDevices], AbstractContextManager[None]]
    lasts_s: float = 0.0
    bound: str | None = "recovery_s_max"
    #: Whether it takes the way in, which nobody can get past.
    takes_the_door: bool = False


@dataclass
class Report:
    """What came of all times of one fault."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    later: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    unrecorded: int = 0
    recovery_s: list[float] = field(default_factory=list)
    #: Of waiting clients that began after the strike.
    ms: list[float] = field(default_factory=list)

    def add(self, traffic: Traffic, struck: float, recovery_s: float) -> None:
        later = len(traffic.since(struck))
        self.sent += len(traffic.waited) + len(traffic.handed_in)
        self.statuses += traffic.statuses()
        self.failures += traffic.failures()
        self.later += later
        self.in_flight += sum(traffic.failures().values()) - later
        self.lost += len(traffic.lost)
        self.twice += len(traffic.twice)
        self.wrong += traffic.wrong
        self.unrecorded += sum(sent.answer is not None and not sent.answer["recorded"] for sent in traffic.waited)
        self.recovery_s.append(recovery_s)
        self.ms += [(sent.ended - sent.began) * 1000 for sent in traffic.waited if sent.answer and sent.began > struck]

    def row(self, name: str) -> tuple[object, ...]:
        failures = ", ".join(f"{count} {what}" for what, count in self.failures.most_common(3))
        return (
            name, self.sent, self.statuses["answered"], self.statuses["abstained"],
            f"{self.in_flight}+{self.later} {failures}".strip(), self.lost, self.twice, self.wrong, self.unrecorded,
            f"{percentile(self.ms, 0.5):.0f}, {percentile(self.ms, 0.99):.0f}" if self.ms else "",
            ", ".join(f"{seconds:.1f}" for seconds in self.recovery_s),
        )  # fmt: skip


def kill(host: str, what: str) -> Callable[[ThreeDevices], AbstractContextManager[None]]:
    """SIGKILL for one process of a device that has `what` in its command line. It has struck when the process is gone:
    until its memory is freed, the kernel takes connections and questions for it."""

    @contextmanager
    def strikes(devices: ThreeDevices) -> Iterator[None]:
        kill_now(one_of(devices.bed.hosts[host], what))
        yield

    return strikes


def kill_now(process: psutil.Process) -> None:
    """SIGKILL, and return when its sockets are closed."""
    ended = os.pidfd_open(process.pid)
    try:
        process.kill()
        select.select([ended], [], [])
    finally:
        os.close(ended)


def one_of(host: Host, what: str) -> psutil.Process:
    if found := host.running(what):
        return found[0]
    raise RuntimeError(f"no {what} runs on {host.name}")


@contextmanager
def redis_killed(devices: ThreeDevices) -> Iterator[None]:
    kill_now(one_of(devices.a, f"redis-server {devices.a.address}"))  # the other one is Ray's
    yield


@contextmanager
def redis_stopped(devices: ThreeDevices) -> Iterator[None]:
    process = one_of(devices.a, f"redis-server {devices.a.address}")
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def c_cut_off(devices: ThreeDevices) -> Iterator[None]:
    devices.c.cut()
    try:
        yield
    finally:
        devices.c.restore()


FAULTS = (
    Fault("grain router", kill("a", "ray::GrainRouter")),
    Fault("bitnet", kill("b", "ray::Bitnet")),
    Fault("cartridge", kill("b", "ray::Cartridge")),
    Fault("kobold", kill("c", "ray::Kobold")),
    Fault("front-door replica", kill("a", "ray::ServeReplica")),
    Fault("Serve controller", kill("a", "ray::ServeController")),
    Fault("HAProxy", kill("a", "bin/haproxy"), takes_the_door=True),
    Fault("raylet of B", kill("b", "raylet/raylet")),
    Fault("raylet of C", kill("c", "raylet/raylet")),
    Fault("Redis", redis_killed),
    Fault("GCS", kill("a", "gcs/gcs_server")),
    Fault("Redis stopped 30 s", redis_stopped, STOPPED_S, bound=None),
    Fault("C cut off 60 s", c_cut_off, CUT_S, bound="used_again_s_max"),
    Fault("B 100 ms and 5 % loss", lambda devices: devices.b.disturbed(delay_ms=100, loss=0.05), STOPPED_S, bound=None),
)


def amiss(devices: ThreeDevices) -> str:
    """What is not as it should be: a layer not ready or not admitted, or a kind of question not answered by its layer."""
    try:
        layers = devices.layers()
        answers = [(known, devices.ask(known.text)) for known in KINDS]
    except httpx.HTTPError as error:
        return f"{type(error).__name__} {error}"
    wrong = [f"{name} is {layers[name]['state']}" for name in LAYERS if layers[name]["state"] != "ready"]
    wrong += [
        f"{name}'s breaker is {layers[name]['breaker']}" for name in LAYERS if layers[name].get("breaker", "closed") != "closed"
    ]
    for known, answer in answers:
        if answer["layer"] != known.layer or answer["degraded"]:
            wrong.append(f"{known.layer}'s question: {answer['status']} by {answer['layer']}, degraded {answer['degraded']}")
        elif not answer["recorded"]:
            wrong.append(f"{known.layer}'s question is not recorded")
    return "; ".join(wrong)


def until_normal(devices: ThreeDevices, since: float) -> tuple[float, str]:
    """Seconds from `since` until all is normal and stays so for a while, and what came right last."""
    steady, last = None, "nothing was noticed"
    while time.monotonic() - since < NORMAL_S:
        if wrong := amiss(devices):
            steady, last = None, wrong
        elif steady is None:
            steady = time.monotonic()
        elif time.monotonic() - steady > STEADY_S:
            return steady - since, last
        threading.Event().wait(0.25)
    return NORMAL_S, last


def suffer(devices: ThreeDevices, fault: Fault, load: Load) -> tuple[Traffic, float, float, str]:
    """One time of a fault: what was sent, when it had struck, how long until all was normal, and what was last."""
    with load.running() as traffic:
        threading.Event().wait(BEFORE_S)
        with fault.strikes(devices):
            struck = time.monotonic()
            threading.Event().wait(fault.lasts_s)
        recovery_s, last = until_normal(devices, time.monotonic())
    return traffic, struck, recovery_s, last


def chosen_faults(only: str | None) -> Sequence[Fault]:
    wanted = [name.strip() for name in only.split(",")] if only else [fault.name for fault in FAULTS]
    known = {fault.name: fault for fault in FAULTS}
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"Unknown faults {', '.join(unknown)}; there are: {', '.join(known)}.")
    return [known[name] for name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each fault once")
    parser.add_argument("--only", help="names of faults, separated by commas")
    parser.add_argument("--times", type=int, default=5, help="how often each fault happens")
    parser.add_argument("--rate", type=float, default=20.0, help="questions a second")
    options = parser.parse_args()
    faults = chosen_faults(options.only)
    if why := missing():
        sys.exit(f"This benchmark cannot run here: {why}.")
    reports = {fault.name: Report() for fault in faults}
    with three_devices(**SETTINGS) as devices:
        load = Load(devices.url, devices.token, MIX, options.rate)
        for fault in faults:
            for number in range(1 if options.quick else options.times):
                try:
                    traffic, struck, recovery_s, last = suffer(devices, fault, load)
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    print(f"{fault.name}: given up: {error}", flush=True)
                    break
                reports[fault.name].add(traffic, struck, recovery_s)
                failures = dict(traffic.failures()) or "no failure"
                print(f"{fault.name} {number + 1}: normal after {recovery_s:.1f} s ({last}), {failures}", flush=True)
    report(reports)


def report(reports: dict[str, Report]) -> None:
    done = {name: each for name, each in reports.items() if each.recovery_s}
    print_table(
        f"Faults under load ({os.cpu_count()} cores are all three devices)",
        (
            "fault",
            "sent",
            "answered",
            "abstained",
            "failed: in flight+later",
            "lost",
            "twice",
            "wrong",
            "unrecorded",
            "p50, p99 ms",
            "normal after s",
        ),
        [each.row(name) for name, each in done.items()],
    )
    door = [fault.name for fault in FAULTS if fault.takes_the_door]
    metrics: dict[str, float] = {
        "faults": sum(len(each.recovery_s) for each in done.values()),
        "sent": sum(each.sent for each in done.values()),
        "lost": sum(each.lost for each in done.values()),
        "answered_twice": sum(each.twice for each in done.values()),
        "wrong": sum(each.wrong for each in done.values()),
        "failed_later": sum(each.later for name, each in done.items() if name not in door),
        "failed_later_without_a_door": sum(each.later for name, each in done.items() if name in door),
    }
    for fault in FAULTS:
        if fault.bound and fault.name in done:
            metrics[fault.bound] = max(metrics.get(fault.bound, 0.0), round(max(done[fault.name].recovery_s), 1))
    finish("chaos", metrics, {name: goal for name, goal in TARGETS.items() if name in metrics})


if __name__ == "__main__":
    main()
