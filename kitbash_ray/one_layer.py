"""One layer alone in this process, in step with the cartridges on disk: what a worker outside the cluster serves.

Not here: the actors' layers (actors/), and all layers together (direct.py).
"""

from __future__ import annotations

from kitbash_ray.calibration import Calibration
from kitbash_ray.config import Settings
from kitbash_ray.errors import ModelError
from kitbash_ray.knowledge.library import Library
from kitbash_ray.layers.bitnet import StudentLayer, open_bitnet
from kitbash_ray.layers.generative import GenerativeLayer
from kitbash_ray.layers.kobold import open_kobold
from kitbash_ray.types import Layer
from kitbash_ray.watch import Watch


def open_layer(name: str, settings: Settings, calibration: Calibration) -> Layer:
    """Layer 1, 2 or 4. Raises ModelError when it has no model, CartridgeError without a cartridges folder."""
    return {"bitnet": _bitnet, "cartridge": _cartridge, "kobold": _kobold}[name](settings, calibration)


def model_of(layer: Layer) -> str:
    """The name of its model; an engine elsewhere tells it when it is asked the first time."""
    return (layer.engine.name if isinstance(layer, GenerativeLayer) and layer.engine else "") or ""


def _bitnet(settings: Settings, calibration: Calibration) -> Layer:
    layer = _usable(open_bitnet(settings, calibration))
    if isinstance(layer, StudentLayer):
        library = Library(settings.cartridges_dir)

        def follow(_: str) -> None:
            layer.follow((fact.id, fact.text) for fact in library.load().facts)

        version = library.fingerprint()
        follow(version)
        Watch(library.fingerprint, version, follow)
    return layer


def _cartridge(settings: Settings, calibration: Calibration) -> Layer:
    # Imported here: whoever serves another layer needs neither LanceDB nor the embedding model.
    from kitbash_ray.knowledge.grain_index import GrainIndex
    from kitbash_ray.knowledge.index import open_builder
    from kitbash_ray.knowledge.retrieval import Retrieval
    from kitbash_ray.layers.cartridge import open_cartridge

    builder = open_builder(settings)
    version = builder.build()

    def opened(version: str) -> tuple[Retrieval, GrainIndex]:
        return Retrieval(builder.table(version)), GrainIndex(builder.grains(version))

    layer = open_cartridge(*opened(version), calibration, builder.embedder, settings)
    Watch(builder.version, version, lambda new: layer.swap(*opened(new)))
    return layer


def _kobold(settings: Settings, calibration: Calibration) -> Layer:
    return _usable(open_kobold(settings, calibration))


def _usable(layer: GenerativeLayer) -> GenerativeLayer:
    """The layer. Raises ModelError when it could only abstain."""
    if layer.unavailable:
        raise ModelError(f"There is {layer.unavailable}.")
    return layer
