"""What shares the one thread of computations: order, faults, and whoever asks from inside."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kitbash_ray.engines.compute import THREAD, compute


def test_whoever_computes_does_it_in_the_same_thread_one_after_the_other() -> None:
    inside, most = 0, 0

    def work() -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1
        return threading.get_ident()

    with ThreadPoolExecutor(8) as others:
        idents = set(others.map(lambda _: compute(work), range(200)))
    assert len(idents) == 1
    assert threading.get_ident() not in idents
    assert most == 1


def test_what_computes_may_compute_in_between() -> None:
    assert compute(lambda: compute(lambda: 2) + 1) == 3
    assert THREAD.submit(lambda: compute(lambda: 4)).result(10) == 4


def test_a_fault_is_raised_where_it_was_waited_for_and_the_next_one_computes() -> None:
    with pytest.raises(ZeroDivisionError):
        compute(lambda: 1 / 0)
    assert compute(lambda: 5) == 5
