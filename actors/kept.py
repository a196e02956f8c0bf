"""What a keeper is given to keep, and the word that ends all keepers. Not here: keeping (keeper.py)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from kitbash_ray.blackboard import DOWN
from kitbash_ray.config import Settings
from kitbash_ray.redis_client import FAULTS, connect_sync


@dataclass(frozen=True, slots=True)
class Kept:
    """What a keeper keeps. `command` starts Ray; `joins` is the head's address, None on the head."""

    cluster_id: str
    joins: str | None
    command: list[str]
    settings: Settings

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "settings": self.settings.model_dump(mode="json")})

    @classmethod
    def from_json(cls, text: str) -> Kept:
        told = json.loads(text)
        return cls(**{**told, "settings": Settings.model_validate(told["settings"])})


def tell_down(settings: Settings) -> int:
    """Tell the other devices that the cluster ends. Returns how many heard it."""
    try:
        with connect_sync(settings.resolved_redis_url) as client:
            return int(client.publish(DOWN, ""))
    except FAULTS:
        return 0
