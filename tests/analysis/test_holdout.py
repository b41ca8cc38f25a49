"""How fast forecasts went wrong, and an interval's two parts, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.drift import Drift
from analysis.fitting import fit_power_law
from analysis.holdout import HeldOutPoint, Holdout, miss_rate
from analysis.laws import PowerLaw
from analysis.results import Fit, Prediction
from analysis.settings import FitSettings

LARGEST = 1e18
AT_NINETY_PERCENT = 2.015048 / 1.644854
"""Student's 95% quantile at 5 degrees of freedom over the normal one."""
AT_HALF = 0.726687 / 0.674490
"""The same at 75%."""


@pytest.fixture
def fit() -> Fit:
    """2 · x^-0.1 up to 1e18, in two replicates that lie 1% above and below it."""
    x = np.geomspace(1e14, LARGEST, 7)
    found = fit_power_law(
        x.tolist(), (2 * x**-0.1).tolist(), FitSettings(replicates=100, starts=10), name="loss"
    )
    replicates = tuple((2 * np.exp(off), -0.1) for off in (-0.01, 0.01))
    law = PowerLaw(a=2.0, b=-0.1)
    return replace(found, law=law, replicates=replicates, noise_sd=0.004, noise_df=5.0)


def test_the_rate_is_the_line_through_the_misses(fit: Fit) -> None:
    """One and four e-folds out, at distance^1.5 = 1 and 8, forecasts 0.001 and 0.008 too high."""
    x = LARGEST * np.exp([1.0, 4.0])
    rate, rate_sd = miss_rate(fit, (x,), fit.law(x) / np.exp([0.001, 0.008]))
    assert rate == pytest.approx(0.001, rel=1e-9)
    # Along the line a miss of 0.01 everywhere is worth (1 + 8) / (1 + 64) of itself, and the
    # noise of each run 1 / sqrt(1 + 64).
    by_hand = AT_NINETY_PERCENT * np.hypot(0.01 * 9 / 65, 0.004 / 65**0.5)
    assert rate_sd == pytest.approx(by_hand, rel=1e-5)


def test_one_outlier_among_the_held_out_is_no_drift(fit: Fit) -> None:
    """A miss counts as three times the noise at most, on either side."""
    x = LARGEST * np.exp([1.0, 4.0])
    for side in (1, -1):
        rate, _ = miss_rate(fit, (x,), fit.law(x) / np.exp([0.0, side * 0.5]))
        assert rate == pytest.approx(side * 3 * 0.004 * 8 / 65, rel=1e-9)


def test_a_held_out_run_no_further_than_the_fitted_counts_as_a_step_out(fit: Fit) -> None:
    x = np.array([LARGEST])
    rate, _ = miss_rate(fit, (x,), fit.law(x) / np.exp(0.001))
    assert rate == pytest.approx(0.001 / np.log(1.2) ** 1.5, rel=1e-9)


def test_errors_of_a_hold_out_are_sizes_and_the_ends_of_an_interval_lie_inside() -> None:
    def point(measured: float) -> HeldOutPoint:
        forecast = Prediction(value=2.0, low=1.9, high=2.1, extrapolation_ratio=2.0)
        return HeldOutPoint(
            label="run", size=1.0, tokens=1.0, flops=1.0, measured=measured, forecast=forecast
        )

    points = tuple(point(measured) for measured in (1.6, 1.9, 2.1, 2.5))
    held_out = Holdout(budgets=1, points=points, rate=0.0, rate_sd=0.01)
    assert [point.error for point in points] == pytest.approx(
        [0.25, 2 / 1.9 - 1, 2 / 2.1 - 1, -0.2]
    )
    by_hand = (0.25 + (2 / 1.9 - 1) + (1 - 2 / 2.1) + 0.2) / 4
    assert held_out.mean_abs_error == pytest.approx(by_hand)
    assert held_out.num_inside == 2


@pytest.mark.parametrize(
    ("level", "normal", "stretch"), [(0.9, 1.644854, AT_NINETY_PERCENT), (0.5, 0.674490, AT_HALF)]
)
def test_an_interval_holds_what_replicates_and_one_new_run_do(
    fit: Fit, level: float, normal: float, stretch: float
) -> None:
    """A normal spread of replicates and normal noise add in squares; Student widens both."""
    x = 1e17
    noise_alone = replace(fit, replicates=((2.0, -0.1),)).predict(x, level=level)
    assert np.log(noise_alone.high / noise_alone.value) == pytest.approx(
        normal * stretch * 0.004, rel=1e-5
    )
    assert np.log(noise_alone.low / noise_alone.value) == pytest.approx(
        -normal * stretch * 0.004, rel=1e-5
    )
    offs = 0.003 * np.random.default_rng(0).standard_normal(20_000)
    offs = np.concatenate([offs, -offs])
    both = replace(fit, replicates=tuple((2 * np.exp(off), -0.1) for off in offs))
    forecast = both.predict(x, level=level)
    assert forecast.value == pytest.approx(2 * x**-0.1)
    assert np.log(forecast.high / forecast.value) == pytest.approx(
        normal * stretch * 0.005, rel=0.01
    )
    assert np.log(forecast.low / forecast.value) == pytest.approx(
        -normal * stretch * 0.005, rel=0.01
    )


def test_a_drift_adds_in_squares_on_its_side_and_beyond_the_points_alone(fit: Fit) -> None:
    sure = replace(fit, replicates=((2.0, -0.1),))
    drifting = replace(sure, drift=Drift(rate=0.002, cuts=3, side="below"))
    x = LARGEST * np.exp(4.0)
    plain, wide = sure.predict(x), drifting.predict(x)
    reach = 2.353363 * 0.002 * 8  # Student's 95% quantile at 3 degrees of freedom
    down = np.log(plain.value / plain.low)
    assert np.log(wide.value / wide.low) == pytest.approx(np.hypot(down, reach), rel=1e-5)
    assert (wide.value, wide.high) == pytest.approx((plain.value, plain.high), rel=1e-9)
    assert wide.extrapolation_ratio == pytest.approx(np.exp(4.0))
    assert drifting.predict(LARGEST) == sure.predict(LARGEST)
