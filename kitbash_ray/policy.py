"""Who answers: a pure function from what the layers said to one decision with a reason.

`Calibrated` (the default) accepts the first layer whose confidence reaches the threshold that
the error budget gives it, and asks layers 1 and 2 together when layer 0 is nearly sure. `Fixed`
has constant thresholds and, in a band below layer 1's, consults a second layer. No clock, no I/O, no await.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from kitbash_ray.calibration import Calibration
from kitbash_ray.consensus import doubted, simple_average, weighted_average
from kitbash_ray.types import LayerResult

#: The fixed policy's thresholds, and the band in which layer 1 asks for a second opinion.
FIXED_THRESHOLDS = {"grain": 0.85, "bitnet": 0.80, "cartridge": 0.80, "kobold": 0.0, "cloud": 0.0}
CONSULT_BAND = (0.70, 0.80)
SECOND = "cartridge"

#: The calibrated policy asks these two at once when layer 0 has at least `NEARLY` of what is needed:
#: such a question is seldom hopeless, and then one round is faster than two.
CONSULTED = ("bitnet", "cartridge")
NEARLY = 0.5
#: From which agreement on two answers are one.
AGREE = 0.5
#: A layer that costs money is not asked for what another has answered already, sure or not.
PAID = frozenset({"cloud"})


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
    """Ask `layers` (together), accept `result`, or abstain with `result` as best candidate.

    `confidence` is that in `result` beside what the others said, None for the result's own.
    """

    action: Literal["ask", "accept", "abstain"]
    rule: str
    reason: str
    layers: tuple[str, ...] = ()
    result: LayerResult | None = None
    confidence: float | None = None


class Policy(Protocol):
    name: str
    #: The calibration it goes by, None for one that goes by none.
    version: str | None

    def decide(self, seen: Situation) -> Decision: ...


class Calibrated:
    """Accept what is right often enough: the layer's threshold for the error budget.

    An answer of layer 0 that is nearly good enough brings layers 1 and 2 in together. A layer that
    keeps to the budget itself and says something else lowers the confidence; two that agree are weighed as one.
    """

    name = "calibrated"

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self.version: str | None = calibration.version

    def decide(self, seen: Situation) -> Decision:
        seen = replace(seen, waiting=tuple(filter(lambda layer: self._worth_asking(layer, seen), seen.waiting)))
        last = seen.results[-1] if seen.results else None
        sure = {result.layer: self._sure(result, seen) for result in _stated(seen.results)}
        for result in _stated(seen.results):
            enough = self._calibration.enough(result.layer, seen.max_error)
            if sure[result.layer] >= enough:
                said = _said(result, sure[result.layer])
                return Decision("accept", "within-budget", f"{said}, {enough:.2f} is enough", (), result, sure[result.layer])
        if agreed := self._agreed(seen, sure):
            return agreed
        if last and last.outcome == "answered" and last.confidence is not None:
            return self._go_on(last, sure[last.layer], seen)
        if not seen.strict and set(seen.waiting) <= PAID and (unstated := _unstated(seen.results)):
            reason = f"{unstated.layer} answers last and is not calibrated"
            return Decision("accept", "last-resort", reason, result=unstated)
        return _go_on(seen, "next-layer", _why(last))

    def _worth_asking(self, layer: str, seen: Situation) -> bool:
        """Whether money could buy an answer: with a budget of its own, a question takes none without a confidence."""
        return layer not in PAID or not seen.strict or self._calibration.enough(layer, seen.max_error) < 1

    def _go_on(self, last: LayerResult, sure: float, seen: Situation) -> Decision:
        enough = self._calibration.enough(last.layer, seen.max_error)
        reason = f"{_said(last, sure)}, {enough:.2f} is needed"
        nearly = last.layer == "grain" and sure >= NEARLY * enough
        in_time = seen.seconds_left is None or seen.seconds_left > 0
        if nearly and in_time and set(CONSULTED) <= set(seen.waiting):
            return Decision("ask", "consult", f"{reason}: two more opinions at once", layers=CONSULTED)
        return _go_on(seen, "over-budget", reason)

    def _sure(self, result: LayerResult, seen: Situation) -> float:
        """The confidence in `result` beside the others, each as good as its layer was measured.

        A layer whose own answers are not known to keep to the budget has no say against another's: the
        student's doubts took nine right answers for one wrong one.
        """
        sure = result.confidence or 0.0
        for other in _stated(seen.results):
            if other.layer != result.layer and self._calibration.enough(other.layer, seen.max_error) < 1:
                opinion = self._calibration.accuracy(other.layer) * (other.confidence or 0.0)
                sure = doubted(sure, opinion, _agreement(result, other))
        return sure

    def _agreed(self, seen: Situation, sure: Mapping[str, float]) -> Decision | None:
        """Layers 1 and 2 read different things: if they say the same, the lower of their thresholds is enough."""
        both = [result for result in _stated(seen.results) if result.layer in CONSULTED]
        if len(both) < len(CONSULTED) or _agreement(*both) < AGREE:
            return None
        accuracies = {layer: self._calibration.accuracy(layer) for layer in CONSULTED}
        together = weighted_average({layer: sure[layer] for layer in CONSULTED}, accuracies)
        enough, best = min(((self._calibration.enough(r.layer, seen.max_error), r) for r in both), key=lambda pair: pair[0])
        if together < enough:
            return None
        names = " and ".join(CONSULTED)
        return Decision(
            "accept", "consensus", f"{names} agree, {together:.2f} together, {enough:.2f} is enough", (), best, together
        )


class Asked:
    """For a question that names its layers: in their order, and the first answer counts."""

    name = "asked"
    version: str | None = None

    def decide(self, seen: Situation) -> Decision:
        last = seen.results[-1] if seen.results else None
        if last and last.outcome == "answered":
            return Decision("accept", "asked-directly", f"{last.layer} was asked directly", result=last)
        return _go_on(seen, "asked-directly", _why(last) if last else "the question names the layer")


class Fixed:
    """Constant thresholds on the confidence, or on the raw score of a layer that has none."""

    name = "fixed"
    version: str | None = None

    def decide(self, seen: Situation) -> Decision:
        last = seen.results[-1] if seen.results else None
        if last is None or last.outcome != "answered":
            return _go_on(seen, "next-layer", _why(last))
        strength = _strength(last)
        if last.layer == SECOND and (first := _consulted(seen.results)):
            together = simple_average([_strength(first), strength])
            if together > CONSULT_BAND[1]:
                best = max((first, last), key=_strength)
                return Decision("accept", "consensus", f"bitnet and {SECOND} average {together:.2f}", result=best)
        threshold = FIXED_THRESHOLDS.get(last.layer, 1.0)
        if strength >= threshold:
            return Decision("accept", "fixed-threshold", f"{last.layer} has {strength:.2f} of {threshold:.2f}", result=last)
        if _in_band(last) and SECOND in seen.waiting:
            return Decision("ask", "consult", f"bitnet has {strength:.2f}: a second opinion", layers=(SECOND,))
        return _go_on(seen, "next-layer", f"{last.layer} has {strength:.2f}, {threshold:.2f} is needed")


def _stated(results: tuple[LayerResult, ...]) -> tuple[LayerResult, ...]:
    """The answers that come with a confidence."""
    return tuple(result for result in results if result.outcome == "answered" and result.confidence is not None)


def _unstated(results: tuple[LayerResult, ...]) -> LayerResult | None:
    """The answer of the last layer that was asked, if it has no confidence; a paid one that kept silent does not count."""
    spoke = (result for result in reversed(results) if result.outcome == "answered" or result.layer not in PAID)
    last = next(spoke, None)
    return last if last and last.outcome == "answered" and last.confidence is None else None


def _agreement(first: LayerResult, second: LayerResult) -> float:
    """What the cascade found when the later of the two came; 0 if it did not compare them."""
    return max(dict(first.agrees).get(second.layer, 0.0), dict(second.agrees).get(first.layer, 0.0))


def _said(result: LayerResult, sure: float) -> str:
    beside = "" if sure == result.confidence else f", {sure:.2f} beside the others"
    return f"{result.layer} is {result.confidence:.2f} sure{beside}"


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
