"""Waiting in a test for what comes from another process or task."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until(look: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """The first true value of `look`, which may have to be awaited."""
    for _ in range(int(seconds / 0.02)):
        found = look()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")
