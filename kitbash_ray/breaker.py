"""Whether a layer is worth asking: a circuit breaker for each, so that a dead one costs one timeout and not one per question.

    closed     every question is let through
    open       none is, for as long as the silence took that opened it, within limits
    half-open  the delay is over: one question is let through as a trial, and its end decides

Only silence counts: a layer that took all of its time, or that was not there, and that told nobody else
anything meanwhile. What a layer says, be it an error, says that it lives: one that is late for some
questions is busy, and turning it off for the others would not make it faster. Not here: who is asked instead (policy.py, replicas.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]

#: Seconds until the next trial, at least and at most. Where it shows at once that nobody is there a trial
#: costs nothing; where it takes a timeout, a device that is back is asked again within ten all the same.
SHORTEST_DELAY_S, LONGEST_DELAY_S = 0.5, 4.0


class Breaker:
    """The breaker of one layer. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trial_at = 0.0
        self._trying = False
        #: How many signs of life there were so far.
        self.heard = 0
        #: Why the layer is not asked, None while it is.
        self.reason: str | None = None

    @property
    def state(self) -> State:
        if self.reason is None:
            return "closed"
        return "half-open" if self._trying or self._clock() >= self._trial_at else "open"

    def admits(self) -> bool:
        """Whether a question may go to the layer. If so, one of the three calls below has to follow."""
        if self.reason is None:
            return True
        if self._trying or self._clock() < self._trial_at:
            return False
        self._trying = True
        return True

    def succeeded(self) -> None:
        """The layer said something."""
        self.heard += 1
        self.reason, self._trying = None, False

    def failed(self, reason: str, heard: int, took_s: float) -> None:
        """The layer was silent for `took_s` towards a question that was let through when `heard` was this.

        If it said something to another one since, that counts for more. Questions that were let through
        before the breaker opened change nothing.
        """
        if heard == self.heard and (self.reason is None or self._trying):
            self._trial_at = self._clock() + min(max(took_s, SHORTEST_DELAY_S), LONGEST_DELAY_S)
            self.reason, self._trying = reason, False

    def released(self) -> None:
        """Nobody waited for the end: that says nothing about the layer."""
        self._trying = False
