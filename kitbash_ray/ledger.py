"""What has been spent on a day, in Redis, so that several front doors share one budget."""

from __future__ import annotations

import time
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from kitbash_ray.blackboard import cost_key
from kitbash_ray.errors import StoreError

KEPT_S = 2 * 86_400


class Ledger(Protocol):
    """Money that is set aside before it is spent. Amounts are dollars."""

    async def reserve(self, amount: float) -> bool:
        """Set `amount` aside; False when the day's budget does not have it any more."""
        ...

    async def give_back(self, amount: float) -> None:
        """Of what was set aside, `amount` was not spent."""
        ...


class RedisLedger:
    """One counter for each day (UTC). Raises StoreError when Redis cannot be reached: then nothing may be spent."""

    def __init__(self, redis: Redis, day_budget: float) -> None:
        self._redis = redis
        self._day_budget = day_budget

    async def reserve(self, amount: float) -> bool:
        # Add first, look then: two questions at once cannot both take the last cent.
        if await self._add(amount) <= self._day_budget:
            return True
        await self._add(-amount)
        return False

    async def give_back(self, amount: float) -> None:
        await self._add(-amount)

    async def spent(self) -> float:
        """Dollars of today, with what is set aside."""
        try:
            return float(await self._redis.get(_today()) or 0)
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis does not answer: {error}") from error

    async def _add(self, amount: float) -> float:
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.incrbyfloat(_today(), amount)
                pipe.expire(_today(), KEPT_S)
                total, _ = await pipe.execute()
            return float(total)
        except (RedisError, OSError) as error:
            raise StoreError(f"What was spent cannot be counted, Redis does not answer: {error}") from error


def _today() -> str:
    return cost_key(time.strftime("%Y-%m-%d", time.gmtime()))
