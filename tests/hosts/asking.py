"""Questions asked while something is broken, what their answers show, and how long it took."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import httpx

from tests.asking import Asked, again_and_again

from .devices import ThreeDevices

#: Everything here shares the two or more cores of one machine.
SLACK_S = 20.0
#: Until Ray has given up a device whose cable is out; it does after half of that.
GIVEN_UP_S = 60.0
BACK_S = 60.0
#: Layer 2 answers it from two facts; no grain does.
TWO_FACTS = "What is the default port of Redis and of the Ray dashboard?"


def asking(devices: ThreeDevices, question: str) -> AbstractContextManager[Asked[dict[str, Any]]]:
    """Somebody asks `question` at device A again and again meanwhile."""
    return again_and_again(lambda: devices.ask(question), question, pause_s=0.1)


def outcomes(answer: dict[str, Any]) -> dict[str, str]:
    return {step["layer"]: step["outcome"] for step in answer["path"]}


def tell(what: str, seconds: float) -> None:
    print(f"measured: {what}: {seconds:.1f} s", flush=True)


def back(devices: ThreeDevices, question: str = "What is ATP?") -> dict[str, Any] | None:
    """The answer, None while the front door is away."""
    try:
        return devices.ask(question)
    except httpx.HTTPError:
        return None


def serves_anew(devices: ThreeDevices, layer: str, before: int) -> bool:
    """Whether another process than `before` is the layer, and is ready."""
    beat = devices.layers()[layer]
    return beat["state"] == "ready" and int(beat["pid"]) != before


def recorded(devices: ThreeDevices, query_id: str) -> bool:
    with devices.http() as http:
        return http.get(f"/v1/queries/{query_id}").status_code == 200


def all_ready(devices: ThreeDevices) -> bool:
    layers = devices.layers()
    return all(layers[name]["state"] == "ready" for name in ("grain", "bitnet", "cartridge", "kobold"))
