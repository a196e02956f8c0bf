"""How soon layer 4's model is free when nobody waits for its answer any more.

A cluster of its own; its layer 4 holds a random model of 40 blocks (or `--model`) that would write
for many seconds. Each time a question is given up in one of four ways, and at once another one,
of one token, asks for the same model, which serves one generation at a time. What that one waits,
less what it takes when the model is idle, is how long the model was still kept.

    gone        a client closes the connection of a stream, or of a plain request
    reading     the same while the model still reads a long prompt
    deleted     DELETE /v1/queries/{id}
    deadline    the question's own time is over

    python -m benchmarks.cancel [--quick] [--model FILE.gguf]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

from benchmarks.common import finish, percentile, print_table
from benchmarks.own_cluster import OwnCluster, own_cluster
from kitbash_ray.tiny_model import write_tiny_gguf

TARGETS = {"free_after_disconnect_ms_max": ("<=", 250.0)}
BLOCKS = 40
#: Tokens that a question which is given up asks for, and characters of a prompt that takes long to read.
LONG, PROMPT_CHARS = 3000, 3000
#: Seconds that the model works before it is given up.
WORK_S = 0.4
CHAT = "/v1/chat/completions"


class Bench:
    """A client of the cluster, and what an idle model needs for one token."""

    def __init__(self, own: OwnCluster) -> None:
        self.http = httpx.Client(base_url=own.url, headers={"Authorization": f"Bearer {own.token}"}, timeout=60)
        self._own = own
        self.probe()
        self.idle_ms = statistics.median(self.probe() for _ in range(10))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self._own.url, headers=self.http.headers, timeout=60)

    def probe(self) -> float:
        """Milliseconds until one token is there."""
        began = time.perf_counter()
        self.http.post(CHAT, json=body("one token", max_tokens=1)).raise_for_status()
        return (time.perf_counter() - began) * 1000

    def kept_ms(self, give_up: Callable[[Bench], None]) -> float:
        give_up(self)
        return max(0.0, self.probe() - self.idle_ms)


def body(question: str, **options: object) -> dict[str, object]:
    return {"model": "kitbash/kobold", "messages": [{"role": "user", "content": question}], **options}


def close_stream(bench: Bench) -> None:
    with bench.client() as leaving, leaving.stream("POST", CHAT, json=body("a story", max_tokens=LONG, stream=True)) as reply:
        began = time.perf_counter()
        for _ in reply.iter_lines():
            if time.perf_counter() - began > WORK_S:
                return


def close_plain(bench: Bench) -> None:
    with bench.client() as leaving, suppress(httpx.ReadTimeout):
        leaving.post(CHAT, json=body("a story", max_tokens=LONG), timeout=WORK_S)


def close_while_reading(bench: Bench) -> None:
    with bench.client() as leaving, suppress(httpx.ReadTimeout):
        leaving.post(CHAT, json=body("x" * PROMPT_CHARS, max_tokens=500), timeout=0.15)


def delete(bench: Bench) -> None:
    query_id: list[str] = []
    known = threading.Event()

    def read() -> None:
        with bench.client() as client, client.stream("POST", CHAT, json=body("a story", max_tokens=LONG, stream=True)) as reply:
            query_id.append(reply.headers["x-kitbash-query-id"])
            known.set()
            reply.read()

    reader = threading.Thread(target=read)
    reader.start()
    known.wait(10)
    time.sleep(WORK_S)
    bench.http.delete(f"/v1/queries/{query_id[0]}").raise_for_status()
    reader.join(10)


def pass_deadline(bench: Bench) -> None:
    reply = bench.http.post(CHAT, json=body("a story", max_tokens=LONG, kitbash={"timeout_s": WORK_S}))
    if reply.status_code == 200:
        raise RuntimeError("the model was done before the deadline; give it more to do")


WAYS = {
    "gone, a stream": close_stream,
    "gone, plain": close_plain,
    "gone, reading": close_while_reading,
    "deleted": delete,
    "deadline": pass_deadline,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 times each instead of 20")
    parser.add_argument("--model", type=Path, help="a GGUF for layer 4")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kb", dir="/tmp"))
    model = options.model or write_tiny_gguf(folder / "slow.gguf", blocks=BLOCKS)
    with own_cluster(folder, KOBOLD_MODEL=str(model.resolve())) as own:
        bench = Bench(own)
        kept = {name: [bench.kept_ms(way) for _ in range(5 if options.quick else 20)] for name, way in WAYS.items()}
        print(f"one token of the idle model: {bench.idle_ms:.1f} ms")
    rows = [
        (name, len(ms), f"{statistics.median(ms):.0f}", f"{percentile(ms, 0.95):.0f}", f"{max(ms):.0f}")
        for name, ms in kept.items()
    ]
    print_table(
        "How long the model is kept by a question that nobody waits for, in ms",
        ("given up", "times", "p50", "p95", "max"),
        rows,
    )
    gone = max(max(ms) for name, ms in kept.items() if name.startswith("gone"))
    metrics = {
        "free_after_disconnect_ms_max": round(gone, 1),
        "free_after_delete_ms_max": round(max(kept["deleted"]), 1),
        "free_after_deadline_ms_max": round(max(kept["deadline"]), 1),
    }
    finish("cancel", metrics, TARGETS)


if __name__ == "__main__":
    main()
