"""The one thread of this process in which llama.cpp computes.

OpenMP gives every thread that computes helpers of its own. With more of them than cores they sleep
at each of the hundreds of barriers of a graph: a short text takes up to twice as long, and two models
used by two threads took six times as long. So whatever computes here takes turns, in pieces as small
as a text or a token. With fewer they spin at a barrier for as long as 15 ms: beside four busy programs
on two cores a short text took 100 to 1,200 ms. A spin of a tenth of a millisecond is as good on idle
cores (4.5 ms for 3.4 to 5) and takes 20 ms on busy ones.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Read once, when the OpenMP library of llama.cpp is loaded, which is after this.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

_here = threading.local()


def _enter() -> None:
    _here.inside = True


#: For whoever has more to do than a computation, but nothing that waits.
THREAD = ThreadPoolExecutor(1, "llama.cpp", initializer=_enter)


def compute(work: Callable[[], T]) -> T:
    """What `work` returns, done in the thread; raises what it raises."""
    if getattr(_here, "inside", False):
        return work()
    return THREAD.submit(work).result()
