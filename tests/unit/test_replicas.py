"""Which member of a layer is asked, and what happens when one is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from kitbash_ray import replicas
from kitbash_ray.errors import LayerBusy, LayerError, LayerUnavailable
from kitbash_ray.replicas import Health, Replicas, StreamingReplicas
from kitbash_ray.types import LayerResult, Query, Turn

QUERY = Query("What is ATP?")


class Worker:
    """A member whose health, faults and end of work the tests decide."""

    def __init__(self, name: str, *, health: Health | None = None, error: Exception | None = None) -> None:
        self.name = name
        self.tells: Health | Exception | None = health or Health()
        self.error = error
        self.asked: list[Query] = []
        self.begun, self.may_end, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.checked = asyncio.Event()
        self.may_end.set()

    async def health(self) -> Health:
        self.checked.set()
        if self.tells is None:
            await asyncio.Event().wait()
        if isinstance(self.tells, Exception):
            raise self.tells
        assert self.tells is not None
        return self.tells

    async def answer(self, query: Query, so_far: tuple[LayerResult, ...]) -> LayerResult:
        self.asked.append(query)
        self.begun.set()
        if self.error:
            raise self.error
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return LayerResult("bitnet", "answered", text=self.name)


class StreamingWorker(Worker):
    """Shows `pieces` before it goes on as the other."""

    def __init__(self, name: str, *pieces: str, error: Exception | None = None) -> None:
        super().__init__(name, error=error)
        self.pieces = pieces

    async def stream(self, query: Query, so_far: tuple[LayerResult, ...]) -> AsyncGenerator[str | LayerResult, None]:
        for piece in self.pieces:
            yield piece
        yield await self.answer(query, so_far)


async def said(layer: Replicas, query: Query = QUERY) -> str | None:
    return (await layer.answer(query, ())).text


async def streamed(layer: StreamingReplicas) -> list[str | None]:
    return [item if isinstance(item, str) else item.text async for item in layer.stream(QUERY, ())]


@asynccontextmanager
async def watched(layer: Replicas, workers: Sequence[Worker]) -> AsyncIterator[asyncio.Event]:
    """The layer knows how its members are; the event is set when one is back."""
    back = asyncio.Event()
    task = asyncio.create_task(layer.watch(back.set))
    try:
        await asyncio.gather(*(worker.checked.wait() for worker in workers))
        await asyncio.sleep(0)
        yield back
    finally:
        task.cancel()
        await asyncio.wait((task,))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "CHECK_S", 0.05)
    monkeypatch.setattr(replicas, "CHECK_EVERY_S", 0.01)
    monkeypatch.setattr(replicas, "CHECK_AWAY_EVERY_S", 0.01)


async def test_the_less_busy_member_is_asked() -> None:
    workers = [Worker("busy"), Worker("idle")]
    layer = Replicas("bitnet", workers)
    for worker in workers:
        worker.may_end.clear()
    first, second = (asyncio.create_task(said(layer)) for _ in range(2))
    await asyncio.gather(*(worker.begun.wait() for worker in workers))
    for worker in workers:
        worker.may_end.set()
    assert {await first, await second} == {"busy", "idle"}


async def test_what_others_have_a_member_do_counts_as_its_load() -> None:
    workers = [Worker("busy", health=Health(load=3)), Worker("idle")]
    layer = Replicas("bitnet", workers)
    async with watched(layer, workers):
        assert {await said(layer, Query(f"question {number}")) for number in range(20)} == {"idle"}


async def test_a_member_without_a_model_is_asked_last() -> None:
    workers = [Worker("empty", health=Health(loaded=False)), Worker("loaded", health=Health(load=5))]
    layer = Replicas("bitnet", workers)
    async with watched(layer, workers):
        assert await said(layer) == "loaded"


async def test_a_conversation_stays_with_one_member() -> None:
    layer = Replicas("bitnet", [Worker(f"worker {number}") for number in range(4)])
    for number in range(10):
        opening = f"question {number}"
        follow_up = Query("and why?", history=(Turn("user", opening), Turn("assistant", "x")))
        assert await said(layer, Query(opening)) == await said(layer, follow_up)


async def test_conversations_are_spread_over_the_members() -> None:
    layer = Replicas("bitnet", [Worker(f"worker {number}") for number in range(3)])
    assert len({await said(layer, Query(f"question {number}")) for number in range(50)}) == 3


@pytest.mark.parametrize("error", [LayerUnavailable("the actor is gone"), LayerBusy("16 questions wait")])
async def test_a_member_that_cannot_work_is_followed_by_the_next(error: Exception) -> None:
    layer = Replicas("bitnet", [Worker("broken", error=error), Worker("whole")])
    assert {await said(layer, Query(f"question {number}")) for number in range(10)} == {"whole"}


async def test_a_fault_in_the_work_is_not_tried_elsewhere() -> None:
    workers = [Worker(name, error=LayerError("a fault")) for name in ("a", "b")]
    with pytest.raises(LayerError, match="a fault"):
        await said(Replicas("bitnet", workers))
    assert sum(len(worker.asked) for worker in workers) == 1


async def test_when_nobody_can_work_the_reasons_are_told() -> None:
    workers = [Worker(name, error=LayerUnavailable(f"{name} is gone")) for name in ("a", "b")]
    with pytest.raises(LayerUnavailable, match=r"a is gone; b is gone") as caught:
        await said(Replicas("bitnet", workers))
    assert not isinstance(caught.value, LayerBusy)


async def test_a_layer_of_which_one_lives_and_is_busy_is_busy() -> None:
    workers = [Worker("a", error=LayerUnavailable("a is gone")), Worker("b", error=LayerBusy("b has too much to do"))]
    with pytest.raises(LayerBusy, match="b has too much to do"):
        await said(Replicas("bitnet", workers))


async def test_a_member_that_did_not_end_its_work_is_tried_after_the_others() -> None:
    stuck, other = Worker("stuck"), Worker("other")
    stuck.may_end.clear()
    layer = Replicas("bitnet", [stuck, other])
    while not stuck.asked:
        task = asyncio.create_task(said(layer, Query(f"question {len(other.asked)}")))
        await asyncio.wait((task,), timeout=0.05)
    task.cancel()
    await asyncio.wait((task,))
    assert {await said(layer, Query(f"later {number}")) for number in range(10)} == {"other"}


@pytest.mark.usefixtures("_impatient")
async def test_a_silent_member_is_away_and_whoever_waits_for_it_goes_on_at_once() -> None:
    silent, other = Worker("silent"), Worker("other")
    silent.may_end.clear()
    layer = Replicas("bitnet", [silent])
    waiting = asyncio.create_task(said(layer))
    await silent.begun.wait()
    silent.tells = None
    async with watched(layer, [silent]):
        with pytest.raises(LayerUnavailable, match="no sign of life"):
            await waiting
        assert silent.cancelled.is_set()
        with pytest.raises(LayerUnavailable, match="no sign of life"):
            await said(layer)
    assert len(silent.asked) == 1
    assert other.asked == []


@pytest.mark.usefixtures("_impatient")
async def test_a_member_that_is_back_is_told_of_and_asked_again() -> None:
    worker = Worker("worker")
    worker.tells = LayerUnavailable("the actor is gone")
    layer = Replicas("bitnet", [worker])
    async with watched(layer, [worker]) as back:
        with pytest.raises(LayerUnavailable, match="the actor is gone"):
            await said(layer)
        assert not back.is_set()
        worker.tells = Health()
        await asyncio.wait_for(back.wait(), 10)
        assert await said(layer) == "worker"


async def test_being_cancelled_cancels_the_member() -> None:
    worker = Worker("worker")
    worker.may_end.clear()
    task = asyncio.create_task(said(Replicas("bitnet", [worker])))
    await worker.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.cancelled.is_set()


async def test_pieces_come_from_one_member() -> None:
    layer = StreamingReplicas("kobold", [StreamingWorker("a", "x", "y"), StreamingWorker("b", "x", "y")])
    first, second, result = await streamed(layer)
    assert (first, second) == ("x", "y")
    assert result in ("a", "b")


async def test_a_member_that_fails_before_it_shows_anything_is_followed_by_the_next() -> None:
    gone = StreamingWorker("gone", error=LayerUnavailable("gone"))
    layer = StreamingReplicas("kobold", [gone, StreamingWorker("whole", "x")])
    assert {tuple(await streamed(layer)) for _ in range(5)} == {("x", "whole")}


async def test_a_member_that_fails_after_it_showed_something_ends_the_answer() -> None:
    workers = [StreamingWorker(name, "x", error=LayerUnavailable("gone")) for name in ("a", "b")]
    with pytest.raises(LayerUnavailable, match="gone"):
        await streamed(StreamingReplicas("kobold", workers))
    assert sum(len(worker.asked) for worker in workers) == 1


async def test_a_member_that_shows_nothing_may_be_one_of_a_streaming_layer() -> None:
    assert await streamed(StreamingReplicas("kobold", [Worker("plain")])) == ["plain"]
