"""Direct mode: the same cascade with the same layers, in this process. No Ray, no Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

from kitbash_ray.calibration import SHIPPED, Calibration, load_calibration
from kitbash_ray.cascade import Cascade, Cosine, as_stream
from kitbash_ray.config import Settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.fitting import FEATURES_OF
from kitbash_ray.knowledge.grain_index import GrainIndex
from kitbash_ray.knowledge.index import IndexBuilder, open_builder
from kitbash_ray.knowledge.retrieval import Retrieval
from kitbash_ray.knowledge.vectors import Progress
from kitbash_ray.layers.bitnet import StudentLayer, open_bitnet
from kitbash_ray.layers.cartridge import open_cartridge
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.layers.kobold import open_kobold
from kitbash_ray.policy import policy_named
from kitbash_ray.types import Answer, Event, Layer, Query


def timeouts_s(settings: Settings) -> dict[str, float]:
    """Seconds that each layer may take."""
    return {
        "grain": settings.grain_timeout / 1000,
        "bitnet": settings.bitnet_timeout / 1000,
        "cartridge": settings.cartridge_timeout / 1000,
        "kobold": settings.kobold_timeout / 1000,
        "cloud": settings.kitbash_cloud_timeout / 1000,
    }


def open_calibration(settings: Settings) -> Calibration:
    """The calibration of the settings: the named one, else what `kitbash calibrate` saved, else the shipped one.

    Raises ConfigError for one that cannot be read or was made for other evidence.
    """
    saved = calibration_file(settings)
    path = saved if settings.kitbash_calibration or saved.exists() else SHIPPED
    found = load_calibration(path)
    if any(fit.features != FEATURES_OF[layer] for layer, fit in found.layers.items()):
        raise ConfigError(f"The calibration {path} is of another version of Kitbash: make a new one with `kitbash calibrate`.")
    return found


def calibration_file(settings: Settings) -> Path:
    """Where `kitbash calibrate` saves."""
    return settings.kitbash_calibration or settings.state_dir / "calibration.json"


def cascade_over(layers: list[Layer], settings: Settings, cosine: Cosine) -> Cascade:
    """A cascade with the policy, the timeouts and the error budget of the settings."""
    policy = policy_named(settings.kitbash_policy, open_calibration(settings))
    return Cascade(layers, policy, timeouts_s=timeouts_s(settings), max_error=settings.kitbash_max_error, cosine=cosine)


class Direct:
    """All layers in this process. Opening it builds the index if the cartridges are new."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        """Raises CartridgeError without a cartridges folder, ModelError for a bad model file."""
        self.builder: IndexBuilder = open_builder(settings)
        version = self.builder.build(progress)
        index = GrainIndex(self.builder.grains(version))
        table = Retrieval(self.builder.table(version))
        calibration = open_calibration(settings)
        embedder = self.builder.embedder
        grain = GrainLayer(index, embedder, calibration)
        bitnet = open_bitnet(settings, calibration)
        if isinstance(bitnet, StudentLayer):
            bitnet.follow((source.fact_id, source.text) for source in index.sources())
        self.cascade = cascade_over(
            [
                grain,
                bitnet,
                open_cartridge(table, index, calibration, embedder, settings),
                open_kobold(settings, calibration),
            ],
            settings,
            grain.cosine,
        )
        self.cartridges = index.cartridges
        self.index = index
        self.cosine = grain.cosine

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each cartridge that could not be read."""
        return self.builder.problems

    def events(self, query: Query) -> AsyncGenerator[Event, None]:
        """The events of `query` as they happen. Closing this cancels the question."""
        return as_stream(lambda tell: self.cascade.run(query, tell))

    async def ask(self, query: Query) -> Answer:
        last = await self.cascade.run(query, lambda _: None)
        assert last.answer is not None  # the last event of a cascade carries it
        return last.answer
