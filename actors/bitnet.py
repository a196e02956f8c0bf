"""Layer 1 on its device."""

from __future__ import annotations

import ray

from actors.generative import GenerativeActor
from actors.remote import MEMBER
from kitbash_ray.config import Settings
from kitbash_ray.knowledge.library import Library
from kitbash_ray.layers.bitnet import StudentLayer, open_bitnet
from kitbash_ray.watch import Watch


class Bitnet(GenerativeActor):
    """Holds the student, or the model of BITNET_MODEL. A student follows the cartridges, as far as it knows them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("bitnet", open_bitnet, settings)
        if isinstance(self._layer, StudentLayer):
            self._library = Library(settings.cartridges_dir)
            version = self._library.fingerprint()
            self._follow(version)
            Watch(self._library.fingerprint, version, self._follow)

    def _follow(self, _: str) -> None:
        assert isinstance(self._layer, StudentLayer)
        self._layer.follow((fact.id, fact.text) for fact in self._library.load().facts)


BitnetActor = ray.remote(**MEMBER)(Bitnet)
