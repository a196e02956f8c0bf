"""Layer 5: a model that somebody else runs, for money. Asked last, and only while the budget lasts.

What a question can cost at most is set aside before it is asked; what it did not cost is given
back. A generation that breaks off keeps what was set aside, because it may be charged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from kitbash_ray.calibration import Calibration, LayerCalibration
from kitbash_ray.config import Settings
from kitbash_ray.engines.base import Engine
from kitbash_ray.engines.openai import OpenAIEngine
from kitbash_ray.errors import ConfigError, LayerUnavailable
from kitbash_ray.layers.kobold import KoboldLayer
from kitbash_ray.ledger import Ledger
from kitbash_ray.types import LayerResult, Query, Usage

#: An engine elsewhere does not tell how many tokens a prompt has before it charges for them; the
#: estimate is raised by this much before money is set aside.
MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for a million tokens, read and written."""

    prompt: float
    answer: float

    def of(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.answer) / 1e6


class CloudLayer(KoboldLayer):
    """A chat model over retrieved facts, with a price."""

    def __init__(
        self,
        engine: Engine,
        price: Price,
        ledger: Ledger,
        *,
        query_budget: float,
        max_tokens: int,
        fit: LayerCalibration | None = None,
    ) -> None:
        super().__init__("cloud", engine, missing="", max_tokens=max_tokens, fit=fit)
        self._price = price
        self._ledger = ledger
        self._query_budget = query_budget

    def cost_usd(self, usage: Usage) -> float:
        return round(self._price.of(usage), 8)

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...] = ()) -> AsyncGenerator[str | LayerResult, None]:
        most = await self._most(query, so_far)
        if most > self._query_budget:
            yield self._abstained(f"it may cost ${most:.4f}, and one question may cost ${self._query_budget:.4f}")
            return
        if not await self._ledger.reserve(most):
            yield self._abstained("today's budget is spent")
            return
        begun = False
        try:
            async with aclosing(super().stream(query, so_far)) as items:
                async for item in items:
                    begun = True
                    if isinstance(item, LayerResult):
                        spent = item.generation.cost_usd if item.generation else 0.0
                        await self._ledger.give_back(most - spent)
                    yield item
        except LayerUnavailable:
            if not begun:  # nobody was there to charge for it
                await self._ledger.give_back(most)
            raise

    async def _most(self, query: Query, so_far: tuple[LayerResult, ...]) -> float:
        """Dollars that the question can cost at most, by an estimate of its tokens."""
        assert self.engine is not None
        prompt = await self.engine.count_tokens(self.messages(query, self.grounds(so_far)))
        return self._price.of(Usage(int(prompt * MARGIN), self._sampling(query).max_tokens))

    def _abstained(self, reason: str) -> LayerResult:
        return LayerResult(self.name, "abstained", reason=reason)


def open_cloud(settings: Settings, calibration: Calibration, ledger: Ledger) -> CloudLayer:
    """The layer of the settings. Raises ConfigError without prices: a budget cannot be kept blindly."""
    prompt, answer = settings.kitbash_cloud_prompt_price, settings.kitbash_cloud_answer_price
    if not settings.kitbash_cloud_url or prompt is None or answer is None:
        raise ConfigError("Layer 5 needs KITBASH_CLOUD_URL, KITBASH_CLOUD_PROMPT_PRICE and KITBASH_CLOUD_ANSWER_PRICE.")
    engine = OpenAIEngine(
        settings.kitbash_cloud_url,
        model=settings.kitbash_cloud_model or "",
        key=settings.kitbash_cloud_key,
        key_setting="KITBASH_CLOUD_KEY",
        context_tokens=settings.kitbash_cloud_context,
    )
    return CloudLayer(
        engine,
        Price(prompt, answer),
        ledger,
        query_budget=settings.kitbash_cloud_query_budget,
        max_tokens=settings.kitbash_cloud_max_tokens,
        fit=calibration.layers.get("cloud"),
    )
