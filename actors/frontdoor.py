"""Putting an orchestrator together inside a front-door replica: actors, index, Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray

from actors.deploy import start_actors
from actors.heartbeat import Heartbeat
from actors.metrics import Metrics, keep_exporting
from actors.orchestrator import Orchestrator, follow_index, redis_client
from actors.remote import RemoteLayer, RemoteStreamingLayer
from kitbash_ray.blackboard import Blackboard
from kitbash_ray.config import Settings, child_environment, started_by_up
from kitbash_ray.direct import cascade_over, open_calibration
from kitbash_ray.feed import Feed
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.grain_index import GrainIndex
from kitbash_ray.layers.cloud import open_cloud
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.ledger import RedisLedger
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.types import Layer

STREAMING = frozenset({"bitnet", "kobold"})


async def open_orchestrator(settings: Settings) -> Orchestrator:
    """An orchestrator connected to everything; starts what is not running yet."""
    ensure_redis(settings)
    handles = start_actors(settings)
    router = handles["grain_router"]
    snapshot, embedder = await asyncio.gather(router.snapshot.remote(), asyncio.to_thread(open_embedder, settings))
    calibration = open_calibration(settings)
    grain = GrainLayer(GrainIndex(await snapshot.arrays[0]), embedder, calibration)
    url = settings.resolved_redis_url
    layers: list[Layer] = [grain, *_remote_layers(handles)]
    if settings.kitbash_cloud_url:
        layers.append(open_cloud(settings, calibration, RedisLedger(redis_client(url), settings.kitbash_cloud_day_budget)))
    replica = ray.get_runtime_context().get_actor_id()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    metrics = Metrics()
    orchestrator = Orchestrator(
        cascade_over(layers, settings, grain.cosine),
        Recorder(
            redis_client(url),
            ttl_s=settings.kitbash_query_ttl,
            feed_maxlen=settings.kitbash_feed_maxlen,
            level=settings.diagnostic_level,
            spool=settings.state_dir / "spool.jsonl",
        ),
        Blackboard(redis_client(url)),
        Feed(redis_client(url)),
        shown_live=frozenset({"kobold"} - calibration.layers.keys()),
        hear=metrics.hear,
    )
    _BACKGROUND.add(asyncio.create_task(follow_index(router, grain, snapshot.version)))
    _BACKGROUND.add(asyncio.create_task(orchestrator.heed_calls()))
    _BACKGROUND.add(asyncio.create_task(keep_exporting(metrics, orchestrator)))
    Heartbeat(f"front_door:{replica}", "front_door", settings, lambda: _status(orchestrator, grain))
    return orchestrator


def ensure_redis(settings: Settings) -> None:
    """With `serve run` nobody has started the private Redis; after `kitbash up` it is up's to start and end."""
    server = RedisServer(settings.state_dir)
    if settings.embedded_redis and not started_by_up() and not server.running():
        server.start(child_environment())


def _remote_layers(handles: Mapping[str, Any]) -> list[Layer]:
    names = [name for name in ("bitnet", "cartridge", "kobold") if name in handles]
    return [(RemoteStreamingLayer if name in STREAMING else RemoteLayer)(name, handles[name]) for name in names]


def _status(orchestrator: Orchestrator, grain: GrainLayer) -> dict[str, str]:
    return {
        "state": "ready",
        "load": str(orchestrator.in_flight),
        "grains": str(len(grain.index)),
        "recorded": str(orchestrator.recorder.healthy).lower(),
    }


#: asyncio keeps only weak references to tasks.
_BACKGROUND: set[asyncio.Task[None]] = set()
