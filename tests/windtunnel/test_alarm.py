"""The alarm in flight: it rings as rarely as promised, early where it should, either way."""

import math

import numpy as np
import pytest

from analysis.results import Prediction
from model.errors import ConfigError
from windtunnel.alarm import AlarmConfig, alarm_sentence, deviations_above, limit_of, looks_of
from windtunnel.along import Evaluated, Waypoint

QUANTILE = 1.6448536269514722
SPREAD = 0.01
FORECAST = Prediction(
    value=2.0,
    low=2.0 * math.exp(-QUANTILE * SPREAD),
    high=2.0 * math.exp(QUANTILE * SPREAD),
    level=0.9,
    extrapolation_ratio=6.0,
)
WAYPOINTS = tuple(Waypoint(step=step, forecast=FORECAST) for step in (10, 20, 30, 40))


def run_of(deviations):
    return tuple(
        Evaluated(step=waypoint.step, loss_nats=2.0 * math.exp(SPREAD * d))
        for waypoint, d in zip(WAYPOINTS, deviations, strict=False)
    )


def test_the_scale_is_the_intervals_own():
    for deviations in (-3.0, -1.0, 0.0, 0.5, 4.0):
        found = deviations_above(FORECAST, 2.0 * math.exp(SPREAD * deviations))
        assert found == pytest.approx(deviations)


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_a_good_run_rings_no_more_often_than_promised(shared):
    rng = np.random.default_rng(5)
    runs = math.sqrt(shared) * rng.standard_normal((2000, 1)) + math.sqrt(
        1 - shared
    ) * rng.standard_normal((2000, 4))
    rang = [any(look.rings for look in looks_of(WAYPOINTS, run_of(run), 0.05)) for run in runs]
    # Five standard errors of a share of 0.05 in 2,000 runs.
    assert np.mean(rang) < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 2000)
    in_band = [all(abs(d) < QUANTILE for d in run) for run in runs]
    assert np.mean(in_band) < 0.9, "a band alone cries wolf more often than one look says"


def test_a_run_that_breaks_rings_at_the_first_look_after_it():
    looks = looks_of(WAYPOINTS, run_of([0.3, -0.5, 5.0, 5.0]), 0.01)
    assert [look.rings for look in looks] == [False, False, True, True]
    assert [look.position for look in looks] == ["inside", "inside", "above", "above"]
    assert "5.0 standard deviations above its forecast" in alarm_sentence(looks[2])


def test_outside_the_band_is_not_yet_an_alarm():
    looks = looks_of(WAYPOINTS, run_of([2.5]), 0.01)
    assert [(look.position, look.rings) for look in looks] == [("above", False)]


def test_too_good_rings_as_well():
    (look,) = looks_of(WAYPOINTS, run_of([-6.0]), 0.01)
    assert look.rings
    assert "no held-out text is trained on" in alarm_sentence(look)


def test_a_loss_that_is_no_number_rings():
    (look,) = looks_of(WAYPOINTS, (Evaluated(step=10, loss_nats=math.nan),), 0.01)
    assert look.rings


def test_more_looks_ask_for_more():
    assert limit_of(0.01, 10) > limit_of(0.01, 4) > limit_of(0.05, 4)
    with pytest.raises(ConfigError, match="false_alarms must be between 0 and 1"):
        AlarmConfig(false_alarms=0.0, stop=False)
