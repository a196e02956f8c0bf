"""Who answers: both policies as tables from situations to decisions."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kitbash_ray.bounds import Threshold
from kitbash_ray.calibration import Calibration, LayerCalibration
from kitbash_ray.consensus import agreement, doubted, simple_average, weighted_average
from kitbash_ray.policy import Calibrated, Decision, Fixed, Situation, policy_named
from kitbash_ray.types import LayerResult, Outcome

LAYERS = ("grain", "bitnet", "cartridge", "kobold")
THRESHOLDS = tuple(
    (budget, Threshold(value, 100, 80, 0.0, budget)) for budget, value in ((0.01, 0.97), (0.05, 0.90), (0.2, 0.60))
)
FIT = LayerCalibration(("x",), (), 0.0, 100, 1.0, THRESHOLDS)
UNPROVEN = LayerCalibration(("x",), (), 0.0, 100, 1.0, ((0.05, Threshold(1.0, 100, 0, 0.0, 1.0)),))
CALIBRATION = Calibration("test", 0.99, 0.01, {"grain": FIT, "cartridge": FIT})


def said(
    layer: str,
    confidence: float | None = None,
    *,
    score: float | None = None,
    outcome: Outcome = "answered",
    agrees: dict[str, float] | None = None,
) -> LayerResult:
    return LayerResult(
        layer, outcome, text="text", score=score, confidence=confidence, reason="a reason", agrees=tuple((agrees or {}).items())
    )


def seen(*results: LayerResult, max_error: float = 0.05, strict: bool = False, seconds_left: float | None = None) -> Situation:
    """A situation in which the layers that have not spoken are still waiting."""
    spoken = {result.layer for result in results}
    return Situation(results, tuple(name for name in LAYERS if name not in spoken), max_error, strict, seconds_left)


def gist(decision: Decision) -> tuple[str, str, tuple[str, ...] | str | None]:
    """Action, rule, and who is asked, or whose result was chosen."""
    return decision.action, decision.rule, decision.layers or (decision.result and decision.result.layer)


GRAIN_OFF, BITNET_OFF = said("grain", outcome="abstained"), said("bitnet", outcome="abstained")
CARTRIDGE_OFF, KOBOLD_OFF = said("cartridge", outcome="abstained"), said("kobold", outcome="abstained")


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (seen(), ("ask", "next-layer", ("grain",))),
        # the threshold is that of the budget, and reaching it is enough
        (seen(said("grain", 0.95)), ("accept", "within-budget", "grain")),
        (seen(said("grain", 0.90)), ("accept", "within-budget", "grain")),
        # nearly enough brings two more opinions in at once, much too little only the next one
        (seen(said("grain", 0.899)), ("ask", "consult", ("bitnet", "cartridge"))),
        (seen(said("grain", 0.45)), ("ask", "consult", ("bitnet", "cartridge"))),
        (seen(said("grain", 0.449)), ("ask", "over-budget", ("bitnet",))),
        (seen(said("grain", 0.95), max_error=0.01), ("ask", "consult", ("bitnet", "cartridge"))),
        (seen(said("grain", 0.61), max_error=0.2), ("accept", "within-budget", "grain")),
        # a budget stricter than any that was fitted lets only certainty pass
        (seen(said("grain", 0.9999), max_error=0.001), ("ask", "consult", ("bitnet", "cartridge"))),
        (seen(said("grain", 1.0), max_error=0.001), ("accept", "within-budget", "grain")),
        # a raw score is no confidence
        (seen(GRAIN_OFF, said("bitnet", score=1.0)), ("ask", "next-layer", ("cartridge",))),
        # a layer that was never fitted needs certainty
        (seen(GRAIN_OFF, said("bitnet", 0.99)), ("ask", "over-budget", ("cartridge",))),
        # abstaining, failing and being late all lead on
        (seen(GRAIN_OFF), ("ask", "next-layer", ("bitnet",))),
        (seen(said("grain", outcome="failed")), ("ask", "next-layer", ("bitnet",))),
        (seen(said("grain", outcome="timeout")), ("ask", "next-layer", ("bitnet",))),
        # the last layer may answer uncalibrated, unless the person set the budget
        (seen(GRAIN_OFF, BITNET_OFF, CARTRIDGE_OFF, said("kobold", score=0.3)), ("accept", "last-resort", "kobold")),
        (
            seen(GRAIN_OFF, BITNET_OFF, CARTRIDGE_OFF, said("kobold", score=0.3), strict=True),
            ("abstain", "nobody-sure", "kobold"),
        ),
        # abstaining shows the best candidate
        (seen(said("grain", 0.2), BITNET_OFF, said("cartridge", 0.7), KOBOLD_OFF), ("abstain", "nobody-sure", "cartridge")),
        (seen(GRAIN_OFF, BITNET_OFF, CARTRIDGE_OFF, KOBOLD_OFF), ("abstain", "nobody-sure", None)),
        # when the time is over nobody else is asked, but what is there and good is taken
        (seen(said("grain", 0.5), seconds_left=0.0), ("abstain", "deadline", "grain")),
        (seen(said("grain", 0.5), seconds_left=-1.0), ("abstain", "deadline", "grain")),
        (seen(said("grain", 0.5), seconds_left=0.1), ("ask", "consult", ("bitnet", "cartridge"))),
        (seen(said("grain", 0.95), seconds_left=-1.0), ("accept", "within-budget", "grain")),
        (seen(seconds_left=0.0), ("abstain", "deadline", None)),
    ],
)
def test_calibrated_decides(situation: Situation, expected: tuple[str, str, object]) -> None:
    assert gist(Calibrated(CALIBRATION).decide(situation)) == expected


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (seen(), ("ask", "next-layer", ("grain",))),
        (seen(said("grain", 0.85)), ("accept", "fixed-threshold", "grain")),
        (seen(said("grain", 0.849)), ("ask", "next-layer", ("bitnet",))),
        (seen(GRAIN_OFF, said("bitnet", 0.80)), ("accept", "fixed-threshold", "bitnet")),
        # without a confidence the raw score counts
        (seen(GRAIN_OFF, said("bitnet", score=0.9)), ("accept", "fixed-threshold", "bitnet")),
        # the band that asks for a second opinion
        (seen(GRAIN_OFF, said("bitnet", 0.799)), ("ask", "consult", ("cartridge",))),
        (seen(GRAIN_OFF, said("bitnet", 0.70)), ("ask", "consult", ("cartridge",))),
        (seen(GRAIN_OFF, said("bitnet", 0.699)), ("ask", "next-layer", ("cartridge",))),
        (seen(GRAIN_OFF, said("bitnet", 0.75), said("cartridge", 0.8)), ("accept", "fixed-threshold", "cartridge")),
        (seen(GRAIN_OFF, said("bitnet", 0.75), said("cartridge", 0.86)), ("accept", "consensus", "cartridge")),
        (seen(GRAIN_OFF, said("bitnet", 0.5), said("cartridge", 0.86)), ("accept", "fixed-threshold", "cartridge")),
        (seen(GRAIN_OFF, said("bitnet", 0.79), said("cartridge", 0.79)), ("ask", "next-layer", ("kobold",))),
        (seen(GRAIN_OFF, said("bitnet", 0.75), said("cartridge", 0.5)), ("ask", "next-layer", ("kobold",))),
        (seen(GRAIN_OFF, said("bitnet", 0.75), CARTRIDGE_OFF), ("ask", "next-layer", ("kobold",))),
        # kobold answers with anything
        (seen(GRAIN_OFF, BITNET_OFF, CARTRIDGE_OFF, said("kobold")), ("accept", "fixed-threshold", "kobold")),
        (seen(said("grain", 0.6), BITNET_OFF, said("cartridge", 0.4), KOBOLD_OFF), ("abstain", "nobody-sure", "grain")),
        (seen(said("grain", 0.5), seconds_left=0.0), ("abstain", "deadline", "grain")),
        (seen(said("grain", 0.9), seconds_left=0.0), ("accept", "fixed-threshold", "grain")),
    ],
)
def test_fixed_decides(situation: Situation, expected: tuple[str, str, object]) -> None:
    assert gist(Fixed().decide(situation)) == expected


def test_fixed_does_not_consult_a_layer_that_is_not_there() -> None:
    situation = Situation((said("bitnet", 0.75),), ("kobold",), 0.05)
    assert gist(Fixed().decide(situation)) == ("ask", "next-layer", ("kobold",))


def test_fixed_goes_on_after_a_layer_that_it_has_no_threshold_for() -> None:
    assert Fixed().decide(Situation((said("elsewhere", 0.5),), ("kobold",), 0.05)).action == "ask"


@pytest.mark.parametrize("policy", [Calibrated(CALIBRATION), Fixed()])
@pytest.mark.parametrize("situation", [seen(), seen(said("grain", 0.95)), seen(said("grain", 0.1), seconds_left=-1)])
def test_every_decision_has_a_reason_and_deciding_twice_gives_the_same(
    policy: Calibrated | Fixed, situation: Situation
) -> None:
    decision = policy.decide(situation)
    assert decision.reason
    assert policy.decide(situation) == decision


@pytest.mark.parametrize(("name", "kind"), [("fixed", Fixed), ("calibrated", Calibrated)])
def test_a_policy_is_found_by_its_name(name: str, kind: type) -> None:
    policy = policy_named(name, CALIBRATION)
    assert isinstance(policy, kind)
    assert policy.name == name


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        # whoever says the same changes nothing, whoever says something else lowers the confidence
        ((said("grain", 0.5), said("cartridge", 0.92, agrees={"grain": 1.0})), ("accept", "within-budget", "cartridge")),
        ((said("grain", 0.5), said("cartridge", 0.92, agrees={"grain": 0.0})), ("ask", "over-budget", ("bitnet",))),
        ((said("grain", 0.5), said("cartridge", 0.99, agrees={"grain": 0.0})), ("accept", "within-budget", "cartridge")),
    ],
)
def test_another_answer_is_a_doubt(results: tuple[LayerResult, ...], expected: tuple[str, str, object]) -> None:
    assert gist(Calibrated(CALIBRATION).decide(seen(*results))) == expected


@pytest.mark.parametrize("fit", [None, UNPROVEN])
def test_a_layer_that_keeps_to_no_budget_has_no_say_against_another(fit: LayerCalibration | None) -> None:
    layers = CALIBRATION.layers | ({"bitnet": fit} if fit else {})
    decision = Calibrated(replace(CALIBRATION, layers=layers)).decide(
        seen(GRAIN_OFF, said("bitnet", 0.9), said("cartridge", 0.92, agrees={"bitnet": 0.0}))
    )
    assert gist(decision) == ("accept", "within-budget", "cartridge")
    assert decision.confidence == 0.92


def test_a_doubted_answer_states_the_lowered_confidence_and_why() -> None:
    decision = Calibrated(CALIBRATION).decide(seen(said("grain", 0.3), said("cartridge", 0.96, agrees={"grain": 0.0})))
    assert decision.confidence is not None
    assert 0.90 < decision.confidence < 0.96
    assert "beside the others" in decision.reason


@pytest.mark.parametrize(
    ("agrees", "expected"),
    [
        (1.0, ("accept", "consensus", "cartridge")),
        (0.0, ("ask", "over-budget", ("kobold",))),
    ],
)
def test_layers_1_and_2_are_accepted_together_only_if_they_say_the_same(
    agrees: float, expected: tuple[str, str, object]
) -> None:
    strict = LayerCalibration(("x",), (), 0.0, 100, 1.0, ((0.05, Threshold(0.99, 100, 80, 0.0, 0.05)),))
    calibration = Calibration("test", 0.99, 0.01, {"bitnet": strict, "cartridge": FIT})
    situation = seen(GRAIN_OFF, said("bitnet", 0.98), said("cartridge", 0.89, agrees={"bitnet": agrees}))
    assert gist(Calibrated(calibration).decide(situation)) == expected


def test_an_exact_match_is_enough_where_no_threshold_is_proven_for_the_budget() -> None:
    calibration = Calibration("test", 0.999, 0.001, {"grain": UNPROVEN})
    policy = Calibrated(calibration)
    assert gist(policy.decide(seen(said("grain", 0.999)))) == ("accept", "within-budget", "grain")
    assert policy.decide(seen(said("grain", 0.998))).action == "ask"
    assert policy.decide(seen(said("grain", 0.999), max_error=0.0005)).action == "ask"


def test_a_calibrated_decision_names_the_calibration_and_a_fixed_one_none() -> None:
    assert (Calibrated(CALIBRATION).version, Fixed().version) == ("test", None)


@pytest.mark.parametrize(("values", "mean"), [([], 0.0), ([0.4], 0.4), ([0.7, 0.9], 0.8)])
def test_the_simple_average_is_the_mean(values: list[float], mean: float) -> None:
    assert simple_average(values) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("confidences", "accuracies", "mean"),
    [({}, {}, 0.0), ({"a": 0.6, "b": 0.9}, {"a": 1.0, "b": 1.0}, 0.75), ({"a": 0.6, "b": 0.9}, {"a": 3.0, "b": 1.0}, 0.675)],
)
def test_the_weighted_average_counts_a_layer_as_often_as_it_is_right(
    confidences: dict[str, float], accuracies: dict[str, float], mean: float
) -> None:
    assert weighted_average(confidences, accuracies) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("first", "second", "cosine", "expected"),
    [
        ("Water boils at 100 °C.", "It boils at 100 degrees.", 0.85, 1.0),
        ("Water boils at 100 °C.", "Water boils at 90 °C.", 0.99, 0.0),
        ("Whales are mammals.", "Whales are not mammals.", 0.99, 0.0),
        ("Whales are mammals.", "A whale suckles its young, so it is counted among the mammals.", 0.65, 0.5),
        ("Whales are mammals.", "Redis is a database.", 0.1, 0.0),
    ],
)
def test_answers_agree_when_they_mean_the_same(first: str, second: str, cosine: float, expected: float) -> None:
    assert agreement(first, second, cosine) == pytest.approx(expected)
    assert agreement(second, first, cosine) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("confidence", "other", "agrees", "expected"),
    [(0.9, 0.5, 1.0, 0.9), (0.9, 0.0, 0.0, 0.9), (0.9, 0.5, 0.0, 0.45 / 0.55), (0.0, 0.5, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0)],
)
def test_what_speaks_for_another_answer_speaks_against_this_one(
    confidence: float, other: float, agrees: float, expected: float
) -> None:
    assert doubted(confidence, other, agrees) == pytest.approx(expected)
