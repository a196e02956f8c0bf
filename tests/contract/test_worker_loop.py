"""A worker outside the cluster, in this process: what it does with a question in hand, and behind a line that is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from kitbash_ray import worker
from kitbash_ray.errors import ClientError
from kitbash_ray.testing import EchoLayer, SlowLayer
from kitbash_ray.types import Answer, Layer
from kitbash_ray.work_types import WorkerIn
from kitbash_ray.worker import Door, Worker

from .waiting import until
from .work_front_door import ME, TOKEN, FrontDoor


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.05)


@asynccontextmanager
async def at_work(door: FrontDoor, layer: Layer) -> AsyncIterator[tuple[Worker, asyncio.Future[None]]]:
    """A worker in this process, whose layer a test has in its hands, and its run; it has to end when it is told to."""
    serving = Worker(layer, Door(door.url, TOKEN, layer.name), WorkerIn(**ME), lambda: "", lambda _: None)
    running = asyncio.ensure_future(serving.run())
    await until(door.has_worker, "the worker is seen")
    yield serving, running
    serving.stop()
    await asyncio.wait_for(running, 10)


async def begun(door: FrontDoor, slow: SlowLayer, question: str) -> asyncio.Future[Answer]:
    """A question that is asked, and that the layer works on by now."""
    asking = asyncio.ensure_future(door.ask(question))
    await asyncio.wait_for(slow.started.wait(), 10)
    return asking


@pytest.mark.usefixtures("fast")
async def test_a_worker_gives_up_a_question_that_is_called_off_and_takes_the_next(door: FrontDoor) -> None:
    slow = SlowLayer("bitnet")
    async with at_work(door, slow):
        asking = await begun(door, slow, "first")
        asking.cancel()
        await asyncio.wait_for(slow.cancelled.wait(), 10)
        slow.release.set()
        assert (await asyncio.wait_for(door.ask("second"), 10)).answer == "at last"


@pytest.mark.usefixtures("fast")
async def test_a_worker_that_is_told_to_stop_ends_after_the_question_at_hand(door: FrontDoor) -> None:
    slow = SlowLayer("bitnet")
    async with at_work(door, slow) as (serving, running):
        asking = await begun(door, slow, "one")
        serving.stop()
        assert not running.done()
        slow.release.set()
        await asyncio.wait_for(running, 10)
        assert (await asking).answer == "at last"
        assert not await door.has_worker()


@pytest.mark.usefixtures("fast")
async def test_an_answer_made_while_the_front_door_is_away_is_handed_in_when_it_is_back(door: FrontDoor) -> None:
    slow = SlowLayer("bitnet")
    async with at_work(door, slow):
        asking = await begun(door, slow, "one")
        await door.stop()
        slow.release.set()
        await door.start()
        assert (await asyncio.wait_for(asking, 20)).answer == "at last"


class Cable:
    """A way to the front door that can be cut: what was connected hangs for ever, and nothing new gets through until it is mended."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mended = asyncio.Event()
        self.mended.set()
        self._sides: list[asyncio.Task[None]] = []

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self.mended.clear()
        for side in self._sides:
            side.cancel()

    def close(self) -> None:
        self._server.close()
        for side in self._sides:
            side.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.mended.wait()
        inner = await asyncio.open_connection("127.0.0.1", self.port)
        for source, sink in ((reader, inner[1]), (inner[0], writer)):
            self._sides.append(asyncio.ensure_future(self._copy(source, sink)))

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
            sink.close()


@pytest.mark.usefixtures("fast")
async def test_after_a_cut_line_is_mended_the_worker_gets_questions_although_its_old_claim_still_hangs(
    door: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "REPLY_S", 0.5)
    cable = Cable(door.port)
    told: list[str] = []
    serving = Worker(EchoLayer("bitnet"), Door(await cable.open(), TOKEN, "bitnet"), WorkerIn(**ME), lambda: "", told.append)
    running = asyncio.ensure_future(serving.run())
    await until(door.has_worker, "the worker is seen")
    assert (await door.ask("before")).answer == "before"
    cable.cut()
    await until(lambda: len(told) == 2, "the worker has noticed")
    await until(lambda: _gone(door), "the front door has noticed")
    cable.mended.set()
    await until(lambda: len(told) == 3, "the worker is connected again")
    await until(lambda: _answers(door, "after"), "the worker answers again", seconds=15)
    serving.stop()
    await asyncio.wait_for(running, 10)
    cable.close()


async def _answers(door: FrontDoor, text: str) -> bool:
    return (await door.ask(text)).answer == text


async def _gone(door: FrontDoor) -> bool:
    return not await door.has_worker()


@pytest.mark.usefixtures("fast")
async def test_what_a_layer_cannot_say_is_a_failed_result_and_the_worker_goes_on(door: FrontDoor) -> None:
    async with at_work(door, EchoLayer("bitnet", confidence=2.0)) as (_, running):
        for _ in range(2):
            answer = await asyncio.wait_for(door.ask("one"), 10)
            assert "confidence is not between 0 and 1" in str(answer.path[0].reason)
        assert not running.done()


async def test_a_refusal_for_good_ends_the_worker(door: FrontDoor) -> None:
    other = WorkerIn(**{**ME, "version": "0.0.9"})
    serving = Worker(EchoLayer("bitnet"), Door(door.url, TOKEN, "bitnet"), other, lambda: "", lambda _: None)
    with pytest.raises(ClientError, match="install the same on both"):
        await asyncio.wait_for(serving.run(), 10)
