"""Ask every node of a running cluster for its facts: `python -m actors.checkup ADDRESS`.

The settings come as JSON on standard input, what was seen goes as JSON to standard output. A
process of its own, like launch.py. Not here: what the facts mean (kitbash_ray/doctor.py).
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kitbash_ray.config import Settings, child_environment, ray_auth
from kitbash_ray.doctor import CONNECT_S, Facts, Seen, look
from kitbash_ray.errors import ClusterError

#: A node starts a process for this, and imports; then it is asked again, for its clock.
ANSWER_S, ASK_ALL_S = 30.0, 120.0


def see(settings: Settings, address: str) -> Seen:
    """What all nodes say. Raises ClusterError when Ray does not answer on this machine."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()  # Ray itself would try for minutes
    except OSError as error:
        raise ClusterError(f"Nothing takes connections at {address}: {error}") from error
    try:
        done = subprocess.run(
            [sys.executable, "-m", "actors.checkup", address],
            input=settings.model_dump_json().encode(),
            capture_output=True,
            timeout=ASK_ALL_S,
            check=False,
            env=child_environment(RAY_AUTH_MODE=ray_auth(), RAY_USAGE_STATS_ENABLED="0"),
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"Ray at {address} did not answer within {ASK_ALL_S:.0f} s.") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ClusterError(f"Ray at {address} does not answer: {lines[-1] if lines else 'no reason given'}")
    told = json.loads(done.stdout)
    return Seen(
        facts=tuple(Facts(**facts) for facts in told["facts"]),
        silent=tuple((node, why) for node, why in told["silent"]),
        addresses=tuple(told["addresses"]),
        resources=tuple(told["resources"]),
    )


def main() -> None:
    output, sys.stdout = sys.stdout, sys.stderr  # Ray prints what it hears of other nodes
    settings = Settings.model_validate_json(sys.stdin.read())
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    calls = [(node, _on(node, settings)) for node in nodes]  # all at once: each starts a process first
    facts, silent = [], []
    for node, call in calls:
        try:
            ray.get(call, timeout=ANSWER_S)
            facts.append(_timed(node, settings))
        except (RayError, GetTimeoutError) as error:
            silent.append((node["NodeName"], str(error).splitlines()[0]))
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    addresses = [node["NodeManagerAddress"] for node in nodes]
    seen = Seen(tuple(facts), tuple(silent), tuple(addresses), tuple(resources))
    print(json.dumps(asdict(seen)), file=output)


def _on(node: dict[str, Any], settings: Settings) -> Any:
    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task: Any = ray.remote(num_cpus=0)(look)
    return task.options(scheduling_strategy=where).remote(settings, node["NodeManagerAddress"])


def _timed(node: dict[str, Any], settings: Settings) -> Facts:
    """The facts once more, now that the process is there, with the node's clock against ours."""
    before = time.time()
    facts: Facts = ray.get(_on(node, settings), timeout=ANSWER_S)
    return replace(facts, skew_s=_skew(facts.at, before, time.time()))


def _skew(at: float, before: float, after: float) -> float:
    """How far a clock is off at least: it was read some time between `before` and `after`."""
    return at - after if at > after else at - before if at < before else 0.0


if __name__ == "__main__":
    main()
