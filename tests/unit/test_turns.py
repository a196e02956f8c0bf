"""The queue before a model."""

from __future__ import annotations

import asyncio

import pytest

from kitbash_ray.engines.turns import Turns
from kitbash_ray.errors import LayerUnavailable


async def _waiting(turns: Turns, entered: list[int], number: int, release: asyncio.Event) -> None:
    async with turns.taken():
        entered.append(number)
        await release.wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_whoever_comes_first_is_served_first() -> None:
    turns, entered, release = Turns(10), list[int](), asyncio.Event()
    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(_waiting(turns, entered, number, release)))
        await _settle()
    assert entered == [0]
    release.set()
    await asyncio.gather(*tasks)
    assert entered == [0, 1, 2, 3, 4, 5]


async def test_more_than_may_wait_are_refused_at_once() -> None:
    turns, release = Turns(1), asyncio.Event()
    tasks = [asyncio.create_task(_waiting(turns, [], number, release)) for number in range(2)]
    await _settle()
    with pytest.raises(LayerUnavailable, match="1 questions wait"):
        async with turns.taken():
            pass
    release.set()
    await asyncio.gather(*tasks)
    async with turns.taken():
        pass


async def test_whoever_leaves_the_queue_holds_up_nobody() -> None:
    turns, entered, release = Turns(10), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(_waiting(turns, entered, number, release)) for number in range(4)]
    await _settle()
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.wait(tasks[1:3])
    release.set()
    await asyncio.gather(tasks[0], tasks[3])
    assert entered == [0, 3]


async def test_a_turn_that_comes_together_with_the_cancellation_goes_to_the_next() -> None:
    turns, entered, release = Turns(10), list[int](), asyncio.Event()
    release.set()
    for _ in range(50):
        async with turns.taken():
            leaving = asyncio.create_task(_waiting(turns, entered, 1, release))
            staying = asyncio.create_task(_waiting(turns, entered, 2, release))
            await _settle()
        leaving.cancel()  # its turn has come, and it does not know yet
        await asyncio.wait_for(staying, 5)
        await asyncio.wait((leaving,))
    assert entered.count(2) == 50


async def test_a_failure_inside_gives_the_turn_back() -> None:
    turns = Turns(0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with turns.taken():
                raise ZeroDivisionError
