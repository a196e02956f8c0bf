"""Layer 5: money is set aside before it is spent, in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import load_settings
from kitbash_ray.errors import ConfigError, LayerUnavailable, StoreError
from kitbash_ray.layers.cloud import CloudLayer, Price, open_cloud
from kitbash_ray.ledger import RedisLedger
from kitbash_ray.redis_client import connect
from kitbash_ray.testing import ScriptedEngine
from kitbash_ray.types import Query

from .conftest import StoppableRedis

#: A dollar for a hundred tokens read, two for a hundred written: sums that can be done in the head.
PRICE = Price(prompt=10_000, answer=20_000)
QUERY = Query("What is ATP?")


@pytest.fixture
async def redis(own_redis: StoppableRedis) -> AsyncIterator[Redis]:
    client = connect(own_redis.url)
    yield client
    await client.aclose()


def cloud(ledger: RedisLedger, engine: ScriptedEngine | None = None, *, query_budget: float = 100.0) -> CloudLayer:
    return CloudLayer(engine or ScriptedEngine("It", " carries"), PRICE, ledger, query_budget=query_budget, max_tokens=10)


async def test_an_answer_costs_what_its_tokens_cost_and_the_ledger_has_just_that(redis: Redis) -> None:
    ledger = RedisLedger(redis, 100.0)
    generation = (await cloud(ledger).answer(QUERY)).generation
    assert generation.cost_usd == pytest.approx(PRICE.of(generation.usage))
    assert generation.cost_usd > 0.04
    assert await ledger.spent() == pytest.approx(generation.cost_usd)
    (key,) = await redis.keys("*")
    assert await redis.ttl(key) > 86_400


async def test_a_question_that_may_cost_more_than_one_may_is_not_asked(redis: Redis) -> None:
    ledger, engine = RedisLedger(redis, 100.0), ScriptedEngine("yes")
    result = await cloud(ledger, engine, query_budget=0.1).answer(QUERY)
    assert (result.outcome, engine.heard) == ("abstained", [])
    assert "one question may cost $0.1000" in result.reason
    assert await ledger.spent() == 0


async def test_when_the_days_budget_is_spent_nothing_more_is_asked(redis: Redis) -> None:
    ledger, engine = RedisLedger(redis, 1.0), ScriptedEngine("yes", "no")
    results = [await cloud(ledger, engine).answer(QUERY) for _ in range(10)]
    assert results[0].outcome == "answered"
    assert results[-1].reason == "today's budget is spent"
    assert await ledger.spent() <= 1.0


async def test_questions_at_the_same_time_do_not_spend_the_last_money_twice(redis: Redis) -> None:
    ledger = RedisLedger(redis, 1.0)
    taken = await asyncio.gather(*(ledger.reserve(0.3) for _ in range(20)))
    assert sum(taken) == 3
    assert await ledger.spent() == pytest.approx(0.9)


async def test_a_generation_that_is_given_up_keeps_what_was_set_aside(redis: Redis) -> None:
    ledger = RedisLedger(redis, 100.0)
    stream = cloud(ledger, ScriptedEngine("one", "two", "three")).stream(QUERY)
    await anext(stream)
    await stream.aclose()
    assert await ledger.spent() > 0.2


async def test_an_endpoint_that_is_not_there_costs_nothing(redis: Redis) -> None:
    ledger = RedisLedger(redis, 100.0)
    settings = load_settings(
        kitbash_cloud_url="http://127.0.0.1:9",
        kitbash_cloud_prompt_price=1,
        kitbash_cloud_answer_price=1,
        kitbash_cloud_model="m",
    )
    with pytest.raises(LayerUnavailable):
        await open_cloud(settings, load_calibration(), ledger).answer(QUERY)
    assert await ledger.spent() == 0


async def test_nothing_is_spent_that_cannot_be_counted(own_redis: StoppableRedis, redis: Redis) -> None:
    own_redis.stop()
    engine = ScriptedEngine("yes")
    with pytest.raises(StoreError):
        await cloud(RedisLedger(redis, 100.0), engine).answer(QUERY)
    assert engine.heard == []


@pytest.mark.parametrize("missing", ["kitbash_cloud_prompt_price", "kitbash_cloud_answer_price", "kitbash_cloud_url"])
def test_a_layer_without_prices_or_address_is_refused(missing: str) -> None:
    given = {"kitbash_cloud_url": "http://x", "kitbash_cloud_prompt_price": 1, "kitbash_cloud_answer_price": 1}
    del given[missing]
    with pytest.raises(ConfigError, match="Layer 5 needs"):
        open_cloud(load_settings(**given), load_calibration(), None)  # type: ignore[arg-type]
