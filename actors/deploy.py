"""Start, find and watch the named actors, each on the device that has its resource.

Starting is idempotent: an actor that exists is found, so the CLI and every front-door replica
may call it. A resource that no node has pins nothing: the actor runs anywhere, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import ray

from actors.bitnet import BitnetActor
from actors.cartridge import CartridgeActor
from actors.grain_router import GrainRouterActor
from actors.kobold import KoboldActor
from kitbash_ray.config import Settings

log = logging.getLogger(__name__)

NAMESPACE = "kitbash"
#: What an actor takes of its device's resource; ten fit on one.
SHARE = 0.1
#: Calls that an actor works on at once, the rest wait.
CONCURRENCY = 64
START_S = 180.0


@dataclass(frozen=True, slots=True)
class Placement:
    """An actor of the cluster: its name, the layer whose replica it is, its class and the resource that pins it."""

    name: str
    layer: str
    actor: Any
    resource: str


def placements(settings: Settings) -> list[Placement]:
    """The actors that these settings want."""
    wanted = [Placement("grain_router", "grain", GrainRouterActor, settings.grain_resource)]
    for layer, actor, spawned in (
        ("bitnet", BitnetActor, settings.bitnet_auto_spawn),
        ("cartridge", CartridgeActor, settings.cartridge_auto_spawn),
        ("kobold", KoboldActor, settings.kobold_auto_spawn),
    ):
        for number, resource in enumerate(settings.resources[layer] if spawned else (), 1):
            wanted.append(Placement(layer if number == 1 else f"{layer}-{number}", layer, actor, resource))
    return wanted


def start_actors(settings: Settings, promised: Collection[str] = ()) -> dict[str, Any]:
    """Handles of all wanted actors, started where they do not run yet. Does not wait for them.

    `promised` are resources of devices that may be away now: their actors wait for them.
    """
    available = {*ray.cluster_resources(), *promised}  # type: ignore[no-untyped-call]
    handles = {}
    for place in placements(settings):
        pinned = {place.resource: SHARE} if place.resource in available else {}
        if not pinned:
            log.warning("no node has the resource %r: %s runs anywhere", place.resource, place.name)
        handles[place.name] = place.actor.options(
            name=place.name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            resources=pinned,
            max_concurrency=CONCURRENCY,
        ).remote(settings)
    return handles


def wait_ready(handles: dict[str, Any], tell: Callable[[str, str], None], seconds: float = START_S) -> None:
    """Return when every actor serves; `tell(name, what)` hears of each as it comes up.

    Raises ray.exceptions.GetTimeoutError when nothing new has come up for that many seconds.
    """
    calls = {handle.ready.remote(): name for name, handle in handles.items()}
    waiting = list(calls)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=seconds)
        if not done:
            raise ray.exceptions.GetTimeoutError(f"still starting: {', '.join(calls[call] for call in waiting)}")
        for call in done:
            tell(calls[call], str(ray.get(call)))
