"""Putting an orchestrator together inside a front-door replica: actors, index, Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray

from actors.deploy import placements, start_actors
from actors.heartbeat import Heartbeat
from actors.metrics import Metrics, keep_exporting
from actors.orchestrator import Orchestrator, follow_index
from actors.queue_worker import open_queue, work
from actors.remote import RemoteMember, RemoteStreamingMember
from kitbash_ray.blackboard import Blackboard
from kitbash_ray.cascade import Cascade
from kitbash_ray.config import Settings, child_environment, started_by_up
from kitbash_ray.direct import cascade_over, open_calibration, timeouts_s
from kitbash_ray.edge import EdgeMember
from kitbash_ray.feed import Feed
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.grain_index import GrainIndex
from kitbash_ray.layers.cloud import open_cloud
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.ledger import RedisLedger
from kitbash_ray.recorder import Recorder
from kitbash_ray.redis_client import connect
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.replicas import Replicas, StreamingReplicas
from kitbash_ray.types import Layer
from kitbash_ray.work import WorkStream
from kitbash_ray.work_types import SERVED

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
    remote = _remote_layers(settings, handles)
    layers: list[Layer] = [grain, *(each for each in remote if each.members)]
    if settings.kitbash_cloud_url:
        layers.append(open_cloud(settings, calibration, RedisLedger(connect(url), settings.kitbash_cloud_day_budget)))
    replica = ray.get_runtime_context().get_actor_id()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    metrics = Metrics()
    cascade = cascade_over(layers, settings, grain.cosine)
    orchestrator = Orchestrator(
        cascade,
        Recorder(
            connect(url),
            ttl_s=settings.kitbash_query_ttl,
            feed_maxlen=settings.kitbash_feed_maxlen,
            level=settings.diagnostic_level,
            spool=settings.state_dir / "spool",
        ),
        Blackboard(connect(url)),
        Feed(connect(url)),
        shown_live=frozenset({"kobold"} - calibration.layers.keys()),
        hear=metrics.hear,
    )
    for endless in (
        follow_index(router, grain, snapshot.version),
        orchestrator.heed_calls(),
        keep_exporting(metrics, orchestrator, open_queue(settings)),
        work(orchestrator, settings, str(replica)),
        *(each.watch(partial(cascade.is_back, each.name)) for each in remote),
        *(with_workers(settings, cascade, each) for each in remote),
    ):
        _BACKGROUND.add(asyncio.create_task(endless))
    Heartbeat(f"front_door:{replica}", "front_door", settings, lambda: _status(orchestrator, grain))
    return orchestrator


def ensure_redis(settings: Settings) -> None:
    """With `serve run` nobody has started the private Redis; after `kitbash up` it is up's to start and end."""
    server = RedisServer(settings.state_dir)
    if settings.embedded_redis and not started_by_up() and not server.running():
        server.start(child_environment())


def _remote_layers(settings: Settings, handles: Mapping[str, Any]) -> list[Replicas]:
    made: list[Replicas] = []
    for layer in SERVED:
        names = [place.name for place in placements(settings) if place.layer == layer]
        if layer in STREAMING:
            made.append(StreamingReplicas(layer, [RemoteStreamingMember(name, handles[name]) for name in names]))
        else:
            made.append(Replicas(layer, [RemoteMember(name, handles[name]) for name in names]))
    return made


async def with_workers(settings: Settings, cascade: Cascade, layer: Replicas) -> None:
    """Workers outside the cluster do a layer's work, too, as soon as the first has come. Never returns.

    A layer without actors is off until then; from then on it is missed when its workers are gone.
    """
    stream = WorkStream(connect(settings.resolved_redis_url), layer.name)
    edge = EdgeMember(stream, timeouts_s(settings)[layer.name])
    await edge.first_worker()
    if layer.name not in cascade.layers:
        cascade.add(layer)
    await asyncio.gather(edge.hear(), layer.join(edge, partial(cascade.is_back, layer.name)))


def _status(orchestrator: Orchestrator, grain: GrainLayer) -> dict[str, str]:
    return {
        "state": "ready",
        "load": str(orchestrator.in_flight),
        "grains": str(len(grain.index)),
        "recorded": str(orchestrator.recorder.healthy).lower(),
    }


#: asyncio keeps only weak references to tasks.
_BACKGROUND: set[asyncio.Task[None]] = set()
