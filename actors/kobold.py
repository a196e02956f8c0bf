"""Layer 4 on its device."""

from __future__ import annotations

import ray

from actors.generative import GenerativeActor
from actors.remote import MEMBER
from kitbash_ray.config import Settings
from kitbash_ray.layers.kobold import open_kobold


class Kobold(GenerativeActor):
    """Holds the language model of KOBOLD_MODEL."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("kobold", open_kobold, settings)


KoboldActor = ray.remote(**MEMBER)(Kobold)
