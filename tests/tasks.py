"""How a test ends what it left running beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the tasks until all are done; whatever they ended with is their own affair.

    Again and again, because a call of redis-py may swallow a cancellation that comes together with its reply.
    """
    while working := [task for task in tasks if not task.done()]:
        for task in working:
            task.cancel()
        await asyncio.wait(working, timeout=0.5)
