"""Somebody who asks again and again while something is broken, and what they got."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import httpx

from kitbash_ray.errors import KitbashError

T = TypeVar("T")


@dataclass
class Asked(Generic[T]):
    """The answers with the seconds that each took, in order, and what came instead of an answer."""

    answers: list[T] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


@contextmanager
def again_and_again(ask: Callable[[], T], what: str, *, pause_s: float) -> Iterator[Asked[T]]:
    """Call `ask` in a thread meanwhile, with a pause between two calls."""
    asked, enough = Asked[T](), threading.Event()

    def repeat() -> None:
        while not enough.wait(pause_s):
            began = time.monotonic()
            try:
                answer = ask()
            except (KitbashError, httpx.HTTPError) as error:
                asked.errors.append(error)
            else:
                asked.seconds.append(time.monotonic() - began)
                asked.answers.append(answer)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        enough.set()
        thread.join(60)
        assert not thread.is_alive(), f"a question hangs: {what}"
