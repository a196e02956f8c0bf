"""A thread that tells the blackboard, every second, that its actor lives and how it is."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping

import ray

from kitbash_ray import __version__
from kitbash_ray.blackboard import HEARTBEAT_S, heartbeat
from kitbash_ray.config import Settings
from kitbash_ray.redis_client import FAULTS, connect_sync, trouble_of

log = logging.getLogger(__name__)

RAYS_OWN = frozenset({"CPU", "GPU", "TPU", "memory", "object_store_memory"})


def own_name(otherwise: str) -> str:
    """The name of the actor that this is: a layer's replicas have one each."""
    return str(ray.get_runtime_context().get_actor_name() or otherwise)


class Heartbeat:
    """Writes `actor:{name}` until the process ends. `status` adds state, load and the like."""

    def __init__(self, name: str, layer: str, settings: Settings, status: Callable[[], Mapping[str, str]]) -> None:
        self._name = name
        self._fixed = {
            "layer": layer,
            "node": platform.node(),
            "device": device(),
            "pid": str(os.getpid()),
            "version": __version__,
            "since": repr(time.time()),
        }
        self._url = settings.resolved_redis_url
        self._status = status
        threading.Thread(target=self._run, name=f"heartbeat-{name}", daemon=True).start()

    def _run(self) -> None:
        client, away = None, False
        while True:
            try:
                client = client or connect_sync(self._url)
                heartbeat(client, self._name, {**self._fixed, **self._status(), "at": repr(time.time())})
                away = False
            except FAULTS as error:
                if not away:  # once, not every second
                    log.warning("heartbeat of %s: %s", self._name, trouble_of(error))
                away, client = True, None  # the next beat may find another master
            time.sleep(HEARTBEAT_S)


def device() -> str:
    """The custom resources that pin this actor to its device; pinned by none, those of the device that it is on."""
    context = ray.get_runtime_context()
    pinned = _custom(context.get_assigned_resources())  # type: ignore[no-untyped-call]
    if pinned:
        return pinned
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return next((_custom(node["Resources"]) for node in nodes if node["NodeID"] == context.get_node_id()), "")


def _custom(resources: Iterable[str]) -> str:
    """Those resources that somebody declared; Ray's own are in RAYS_OWN or have a colon in their names."""
    return ", ".join(sorted(name for name in resources if name not in RAYS_OWN and ":" not in name))
