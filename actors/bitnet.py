"""Layer 1 on its device."""

from __future__ import annotations

import ray

from actors.generative import GenerativeActor
from kitbash_ray.config import Settings
from kitbash_ray.layers.bitnet import open_bitnet


class Bitnet(GenerativeActor):
    """Holds the small model of BITNET_MODEL."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("bitnet", open_bitnet, settings)


BitnetActor = ray.remote(num_cpus=0, max_restarts=-1)(Bitnet)
