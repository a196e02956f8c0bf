"""What has been spent on a day, in Redis, so that several front doors share one budget."""

from __future__ import annotations

import time
from typing import Any, Protocol

from redis.asyncio import Redis

from kitbash_ray.blackboard import cost_key, prefix_of
from kitbash_ray.redis_client import answer_of

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
        self._prefix = prefix_of(redis)
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
        return float(await answer_of(self._redis.get(self._today())) or 0)

    async def _add(self, amount: float) -> float:
        return float(await answer_of(self._added(self._today(), amount)))

    async def _added(self, key: str, amount: float) -> Any:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.incrbyfloat(key, amount)
            pipe.expire(key, KEPT_S)
            total, _ = await pipe.execute()
        return total

    def _today(self) -> str:
        return cost_key(time.strftime("%Y-%m-%d", time.gmtime()), self._prefix)
