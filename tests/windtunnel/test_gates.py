"""Gates refuse by name, pass by name and reason, and judge by their thresholds."""

from dataclasses import replace
from typing import Literal

import pytest

from analysis.holdout import HeldOutPoint, Holdout
from analysis.noise import NoiseFloor
from analysis.results import FitWarning, Interval, Prediction
from model.errors import ConfigError
from windtunnel import gates
from windtunnel.gates import GateResult, GateThresholds, LaunchRefused, check_gates
from windtunnel.trials import TrialEvidence

THRESHOLDS = GateThresholds(
    holdout_error=0.02,
    interval_width=0.1,
    extrapolation=10.0,
    refuse_statuses=("AT_START",),
    noise_runs=2,
    repetitions=4.0,
    trial_gap=0.0025,
)


def forecast(half: float = 0.1, ratio: float = 6.0) -> Prediction:
    return Prediction(value=2.0, low=2 - half, high=2 + half, level=0.9, extrapolation_ratio=ratio)


def holdout(error: float) -> Holdout:
    point = HeldOutPoint(
        label="r",
        size=1e6,
        tokens=1e6,
        flops=1e12,
        measured=2.0 / (1 + error),
        forecast=forecast(),
    )
    return Holdout(budgets=1, points=(point,), rate=0.0, rate_sd=0.01)


def trial(takes: Literal["variant", "baseline"], low: float) -> TrialEvidence:
    """Its gap from ``low`` to 0.001 above."""
    gap = Interval(value=low + 5e-4, low=low, high=low + 1e-3)
    return TrialEvidence(sweep="t", feature="x=1 against 2", takes=takes, gap=gap)


@pytest.mark.parametrize(
    ("passing", "failing"),
    [
        (
            gates.holdout_gate((holdout(0.001), holdout(0.019)), THRESHOLDS),
            gates.holdout_gate((holdout(0.001), holdout(0.021)), THRESHOLDS),
        ),
        (
            gates.width_gate(forecast(half=0.0999), THRESHOLDS),
            gates.width_gate(forecast(half=0.101), THRESHOLDS),
        ),
        (
            gates.extrapolation_gate({"compute": 10.0, "tokens": 10.0}, THRESHOLDS),
            gates.extrapolation_gate({"compute": 10.1, "tokens": 1.0}, THRESHOLDS),
        ),
        (
            gates.health_gate([FitWarning(status="OUTLIERS", sentence="one")], THRESHOLDS),
            gates.health_gate([FitWarning(status="AT_START", sentence="alpha")], THRESHOLDS),
        ),
        (
            gates.noise_gate(NoiseFloor(sd=0.002, degrees_of_freedom=2, cells=1), THRESHOLDS),
            gates.noise_gate(NoiseFloor(sd=0.002, degrees_of_freedom=1, cells=1), THRESHOLDS),
        ),
        (
            gates.repetition_gate({"code": 1.0, "prose": 4.0}, THRESHOLDS),
            gates.repetition_gate({"code": 1.0, "prose": 4.01}, THRESHOLDS),
        ),
        (gates.protocol_gate(("p",), "p"), gates.protocol_gate(("p",), "q")),
        (
            gates.trial_gate([trial("variant", 0.002), trial("baseline", 0.9)], THRESHOLDS),
            gates.trial_gate([trial("variant", 0.003)], THRESHOLDS),
        ),
        (
            gates.trial_gate([trial("baseline", -0.0034)], THRESHOLDS),
            gates.trial_gate([trial("baseline", -0.0036)], THRESHOLDS),
        ),
        (gates.trial_gate([], THRESHOLDS), gates.trial_gate([trial("variant", 0.1)], THRESHOLDS)),
    ],
)
def test_each_gate_turns_at_its_threshold(passing: GateResult, failing: GateResult) -> None:
    assert passing.passed, passing.sentence
    assert not failing.passed, failing.sentence
    assert passing.name == failing.name
    assert passing.name in gates.GATES


def test_what_is_asked_for_exactly_is_enough() -> None:
    quarter = replace(THRESHOLDS, holdout_error=0.25, interval_width=0.25)
    assert gates.width_gate(forecast(half=0.25), quarter).passed
    assert gates.holdout_gate((holdout(0.25),), quarter).passed


def test_missing_evidence_fails_its_gate() -> None:
    assert not gates.holdout_gate((), THRESHOLDS).passed
    assert not gates.noise_gate(None, THRESHOLDS).passed
    assert not gates.protocol_gate((), "p").passed
    assert not gates.protocol_gate(("p", "q"), "p").passed


def test_a_foreign_protocol_is_told_from_a_mixture() -> None:
    foreign, mixed = (gates.protocol_gate(seen, "r") for seen in (("p",), ("p", "q")))
    assert foreign.sentence == "the fit is of protocol p, the run of r"
    assert mixed.sentence == "the fit mixes 2 protocols: p, q"


def test_an_unknown_status_in_the_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"refuse_statuses: 'SICK'.*AT_START"):
        replace(THRESHOLDS, refuse_statuses=("SICK",))


RESULTS = (
    GateResult(name="holdout_error", passed=True, sentence="fine"),
    GateResult(name="extrapolation", passed=False, sentence="30 times; at most 10"),
    GateResult(name="noise_floor", passed=False, sentence="no second seed"),
)


def test_a_refusal_names_every_failed_gate_and_no_other() -> None:
    with pytest.raises(LaunchRefused) as refused:
        check_gates(RESULTS, {}, where="quickstart-x")
    text = str(refused.value)
    first, *points = text.split("\n- ")
    assert first == "quickstart-x: refused by 2 of 3 gates"
    assert points[:2] == ["extrapolation: 30 times; at most 10", "noise_floor: no second seed"]
    assert "override.extrapolation='why this may pass'" in points[2]
    assert "holdout_error" not in text


def test_overriding_one_of_two_still_refuses_the_other() -> None:
    with pytest.raises(LaunchRefused, match="refused by 1 of 3 gates\n- noise_floor"):
        check_gates(RESULTS, {"extrapolation": "trying it"}, where="x")


def test_overrides_pass_with_their_reasons_and_only_where_needed() -> None:
    given = {"extrapolation": " a test ", "noise_floor": "known", "holdout_error": "not needed"}
    assert check_gates(RESULTS, given, where="x") == {
        "extrapolation": "a test",
        "noise_floor": "known",
    }


@pytest.mark.parametrize("reason", ["", "   "])
def test_an_override_without_a_reason_is_refused(reason: str) -> None:
    with pytest.raises(ConfigError, match=r"override\.extrapolation: a reason is needed"):
        check_gates(RESULTS, {"extrapolation": reason, "noise_floor": "known"}, where="x")


def test_an_override_of_no_gate_lists_the_gates() -> None:
    with pytest.raises(ConfigError, match=r"override\.width: no such gate\. Gates: holdout_error"):
        check_gates(RESULTS, {"width": "typo"}, where="x")


@pytest.mark.parametrize(("size_ratio", "tokens_ratio"), [(0.1, 60.0), (60.0, 0.1)])
def test_each_axis_is_an_extrapolation_of_its_own(size_ratio: float, tokens_ratio: float) -> None:
    ratios = {"compute": 6.0, "size": size_ratio, "tokens": tokens_ratio}
    result = gates.extrapolation_gate(ratios, THRESHOLDS)
    assert not result.passed
    assert "60 times the" in result.sentence
