"""An exact hit over HTTP with everything recorded, against two no-ops in the same cluster.

Starts a cluster of its own (random ports, its own state folder) with the real front door and,
beside it, two deployments with the same Serve options that answer at once:

    noop   as Serve's documentation writes an application: FastAPI with a pydantic body and reply, no token
    bare   the front door's own light route, gate and models, with no cascade behind them

Runs are short, many and interleaved, because the speed of a shared machine changes within seconds; medians
are reported. The load comes from `wrk` (apt install wrk), because a client in Python would take a core.

    python -m benchmarks.front_door [--quick]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.common import finish, print_table
from benchmarks.own_cluster import own_cluster

QUESTION = "What is ATP?"
CONNECTIONS = (1, 16)
#: What was asked over how many connections, and of each round the requests a second and the median milliseconds.
Runs = dict[tuple[str, int], list[tuple[float, float]]]


def load(url: str, token: str, connections: int, seconds: int, folder: Path) -> tuple[float, float]:
    """Requests a second and the median latency in ms. Raises on any reply but 200."""
    script = folder / "ask.lua"
    script.write_text(
        'wrk.method = "POST"\n'
        f"wrk.body = '{json.dumps({'query': QUESTION})}'\n"
        f'wrk.headers["Authorization"] = "Bearer {token}"\n'
        'wrk.headers["Content-Type"] = "application/json"\n'
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    half, rate = re.search(r"50%\s+([\d.]+)(us|ms|s)", text), re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert half, text
    assert rate, text
    return float(rate[1]), float(half[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[half[2]]


def measure(url: str, token: str, rounds: int, seconds: int, folder: Path) -> Runs:
    paths = {"noop": f"{url}/noop/v1/query", "bare": f"{url}/bare/v1/query", "kitbash": f"{url}/v1/query"}
    for path in paths.values():
        load(path, token, 16, 2, folder)  # warm up
    runs: Runs = {}
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for name, path in paths.items():
                runs.setdefault((name, connections), []).append(load(path, token, connections, seconds, folder))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed to make the load: apt install wrk")
    rounds, seconds = (3, 2) if options.quick else (15, 2)
    with own_cluster() as own:
        subprocess.run([sys.executable, "-m", "benchmarks.no_ops", own.address], check=True)
        runs = measure(own.url, own.token, rounds, seconds, own.folder)
    rows = [
        (
            name,
            connections,
            f"{median(r for r, _ in values):.0f}",
            f"{median(ms for _, ms in values):.3f}",
            " ".join(f"{r:.0f}" for r, _ in values),
        )
        for (name, connections), values in runs.items()
    ]
    print_table("Exact hit over HTTP", ("what", "connections", "requests/s", "p50 ms", "each run"), rows)
    finish(
        "front_door",
        {
            "rps_ratio_to_noop_c1": ratio(runs, "noop", 1),
            "rps_ratio_to_noop_c16": ratio(runs, "noop", 16),
            "rps_ratio_to_bare_c16": ratio(runs, "bare", 16),
            "p50_ms_c1": round(median(ms for _, ms in runs["kitbash", 1]), 3),
            "rps_c16": round(median(r for r, _ in runs["kitbash", 16])),
        },
        {"rps_ratio_to_noop_c16": (">=", 0.75)},
    )


def ratio(runs: Runs, other: str, connections: int) -> float:
    """The median over the rounds of our requests a second by the other's."""
    pairs = zip(runs["kitbash", connections], runs[other, connections], strict=True)
    return round(median(ours[0] / theirs[0] for ours, theirs in pairs), 3)


if __name__ == "__main__":
    main()
