"""Who answers: a pure function from what the layers said to one decision with a reason.

`Calibrated` (the default) accepts the first layer whose confidence reaches the threshold that
the error budget gives it. `Fixed` has constant thresholds and, in a band below layer 1's,
consults a second layer. No clock, no I/O, no await.
"""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec import Struct

from kitbash_ray.calibration import Calibration
from kitbash_ray.consensus import simple_average
from kitbash_ray.types import LayerResult

#: The fixed policy's thresholds, and the band in which layer 1 asks for a second opinion.
FIXED_THRESHOLDS = {"grain": 0.85, "bitnet": 0.80, "cartridge": 0.80, "kobold": 0.0}
CONSULT_BAND = (0.70, 0.80)
CONSULTED = "cartridge"


class Situation(Struct, frozen=True, gc=False):
    """What a policy looks at. `waiting` are the layers not asked yet, the cheapest first.

    `strict` says that the person set the error budget for this very question.
    """

    results: tuple[LayerResult, ...]
    waiting: tuple[str, ...]
    max_error: float
    strict: bool = False
    seconds_left: float | None = None


class Decision(Struct, frozen=True, gc=False):
    """Ask `layers` (together), accept `result`, or abstain with `result` as best candidate."""

    action: Literal["ask", "accept", "abstain"]
    rule: str
    reason: str
    layers: tuple[str, ...] = ()
    result: LayerResult | None = None


class Policy(Protocol):
    name: str

    def decide(self, seen: Situation) -> Decision: ...


class Calibrated:
    """Accept what is right often enough: the layer's threshold for the error budget."""

    name = "calibrated"

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def decide(self, seen: Situation) -> Decision:
        last = seen.results[-1] if seen.results else None
        if last and last.outcome == "answered" and last.confidence is not None:
            threshold = self._threshold(last.layer, seen.max_error)
            said = f"{last.layer} is {last.confidence:.2f} sure"
            if last.confidence >= threshold:
                return Decision("accept", "within-budget", f"{said}, {threshold:.2f} is enough", result=last)
            return _go_on(seen, "over-budget", f"{said}, {threshold:.2f} is needed")
        if last and last.outcome == "answered" and not seen.strict and not seen.waiting:
            return Decision("accept", "last-resort", f"{last.layer} answers last and is not calibrated", result=last)
        return _go_on(seen, "next-layer", _why(last))

    def _threshold(self, layer: str, max_error: float) -> float:
        fit = self._calibration.layers.get(layer)
        return fit.threshold(max_error) if fit else 1.0


class Fixed:
    """Constant thresholds on the confidence, or on the raw score of a layer that has none."""

    name = "fixed"

    def decide(self, seen: Situation) -> Decision:
        last = seen.results[-1] if seen.results else None
        if last is None or last.outcome != "answered":
            return _go_on(seen, "next-layer", _why(last))
        strength = _strength(last)
        if last.layer == CONSULTED and (first := _consulted(seen.results)):
            together = simple_average([_strength(first), strength])
            if together > CONSULT_BAND[1]:
                best = max((first, last), key=_strength)
                return Decision("accept", "consensus", f"bitnet and {CONSULTED} average {together:.2f}", result=best)
        threshold = FIXED_THRESHOLDS.get(last.layer, 1.0)
        if strength >= threshold:
            return Decision("accept", "fixed-threshold", f"{last.layer} has {strength:.2f} of {threshold:.2f}", result=last)
        if _in_band(last) and CONSULTED in seen.waiting:
            return Decision("ask", "consult", f"bitnet has {strength:.2f}: a second opinion", layers=(CONSULTED,))
        return _go_on(seen, "next-layer", f"{last.layer} has {strength:.2f}, {threshold:.2f} is needed")


def _go_on(seen: Situation, rule: str, reason: str) -> Decision:
    if seen.seconds_left is not None and seen.seconds_left <= 0:
        return Decision("abstain", "deadline", "the time for this question is over", result=_best(seen.results))
    if seen.waiting:
        return Decision("ask", rule, reason, layers=seen.waiting[:1])
    return Decision(
        "abstain", "nobody-sure", f"no layer is sure enough: {_surest(seen.results, reason)}", result=_best(seen.results)
    )


def _best(results: tuple[LayerResult, ...]) -> LayerResult | None:
    return max((result for result in results if result.outcome == "answered"), key=_strength, default=None)


def _surest(results: tuple[LayerResult, ...], reason: str) -> str:
    best = _best(results)
    return f"the best, {best.layer}, has {_strength(best):.2f}" if best else reason


def _consulted(results: tuple[LayerResult, ...]) -> LayerResult | None:
    """Layer 1's result, if it asked for a second opinion."""
    return next((result for result in results if _in_band(result)), None)


def _in_band(result: LayerResult) -> bool:
    low, high = CONSULT_BAND
    return result.layer == "bitnet" and result.outcome == "answered" and low <= _strength(result) < high


def _strength(result: LayerResult) -> float:
    value = result.score if result.confidence is None else result.confidence
    return value or 0.0


def _why(last: LayerResult | None) -> str:
    if last is None:
        return "the cheapest layer first"
    if last.outcome == "answered":
        return f"{last.layer} answered without a calibrated confidence"
    return f"{last.layer} {last.outcome}: {last.reason}" if last.reason else f"{last.layer} {last.outcome}"


def policy_named(name: str, calibration: Calibration) -> Policy:
    """The policy that KITBASH_POLICY names."""
    return Fixed() if name == "fixed" else Calibrated(calibration)
