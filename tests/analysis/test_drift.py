"""Ladders on which the law does not hold: the fit says so, and the intervals widen as they must."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from analysis.allocation import optimum
from analysis.catalogue import LAWS
from analysis.drift import FORM_RATE, Drift, form_allowance
from analysis.fitting import fit_points, fit_surface, form_rate_of, frontier_fit
from analysis.holdout import Holdout, drift_of
from analysis.laws import LossSurface
from analysis.points import Points
from analysis.results import Fit, FitStatus
from analysis.settings import FitSettings
from analysis.study import Study, make_study

QUICK = FitSettings(replicates=100, starts=60)
NOISE_SD = 0.004


def broken(size: np.ndarray, tokens: np.ndarray, at: float = 8e6) -> np.ndarray:
    """Tokens help little before ``at`` and much after it (a smoothly broken power law)."""
    share = (tokens / at) ** -0.08 * (1 + (tokens / at) ** 4) ** (-0.37 / 4)
    return np.asarray(1.2 + 50.35 * size**-0.35 + 1.5 * share)


@pytest.fixture
def broken_points(ladder_points: Callable[..., Points]) -> Callable[[int], Points]:
    def draw(seed: int) -> Points:
        points = ladder_points()
        noise = np.random.default_rng(seed).standard_normal(len(points))
        loss = broken(points.array("size"), points.array("tokens")) * np.exp(NOISE_SD * noise)
        return replace(points, loss=tuple(loss.tolist()))

    return draw


def study_of(points: Points) -> Study:
    return make_study("drawn", points, (), QUICK)


def held(*rates: float, sd: float = 0.01) -> Iterator[Holdout]:
    return (Holdout(budgets=1, points=(), rate=rate, rate_sd=sd) for rate in rates)


def test_a_drift_is_seen_only_where_the_form_is_wrong() -> None:
    assert drift_of(tuple(held(0.01, 0.019, -0.01)), curved=False) is None
    assert drift_of((), curved=True) is None
    below = drift_of(tuple(held(0.03, 0.01)), curved=False)
    assert below is not None
    assert (below.side, below.cuts) == ("below", 2)
    assert below.rate == 0.03
    above, both = (drift_of(tuple(held(*r)), curved=True) for r in ((-0.01, -0.01), (-0.01, 0.01)))
    assert above is not None
    assert above.side == "above"
    assert both is not None
    assert both.side == "both"


def test_the_allowance_is_nothing_within_the_points_and_grows_beyond_them() -> None:
    drift = Drift(rate=0.01, cuts=3, side="below")
    below, above = drift.allowance(np.array([0.1, 1.0, np.e, np.e**4]), 0.9)
    quantile = 2.3534  # Student's, 3 degrees of freedom, 95%
    assert below == pytest.approx(quantile * 0.01 * np.array([0.0, 0.0, 1.0, 8.0]), rel=1e-4)
    assert not above.any()


def test_what_the_form_may_be_off_by_grows_like_a_drift() -> None:
    ratios = np.array([0.5, 1.0, np.e, np.e**4])
    assert form_allowance(ratios, 0.9) == pytest.approx([0.0, 0.0, 0.0065, 0.052])
    # Normal quantiles: 1.960 at 95 %, 1.645 at 90 %.
    assert form_allowance(np.e, 0.95) == pytest.approx(0.0065 * 1.95996 / 1.64485, rel=1e-5)


def test_a_surface_and_its_frontier_allow_for_their_form_beyond_the_points_alone(
    ladder_points: Callable[..., Points],
) -> None:
    """Of a law without noise nothing else is left in the interval."""
    surface = fit_surface(ladder_points(), QUICK)
    frontier, largest = frontier_fit(surface), surface.largest_compute
    for times, allowed in ((0.5, 0.0), (np.e, 0.0065), (np.e**4, 0.052)):
        best = optimum(surface, times * largest).loss
        for forecast in (frontier.predict(times * largest), best):
            ends = np.log([forecast.value / forecast.low, forecast.high / forecast.value])
            assert ends == pytest.approx([allowed, allowed], rel=1e-2, abs=2e-5)


def test_a_bend_within_the_ladder_is_named_and_its_forecast_covers(
    broken_points: Callable[[int], Points],
) -> None:
    """Without the drift every one of these forecasts, five times out, lies above the truth."""
    for seed in range(4):
        study = study_of(broken_points(seed))
        fit = study.surface
        assert FitStatus.CURVED in fit.statuses()
        assert fit.drift is not None
        assert fit.drift.side == "below"
        far = (1.6e7 * 5**0.5, 1.6e7 * 5**0.5)
        truth = float(broken(np.array(far[0]), np.array(far[1])))
        assert fit.predict(*far).contains(truth)
        assert not replace(fit, drift=None).predict(*far).contains(truth)
        inside = (4e6, 4e6)
        assert fit.predict(*inside) == replace(fit, drift=None).predict(*inside)
        assert study.compute_law.drift == fit.drift, "the frontier is widened alike"
        assert "the law's form is seen to be wrong" in " ".join(study.summary().split())
        assert Study.from_json(study.to_json()) == study


def test_a_ladder_that_follows_the_law_is_left_alone(
    ladder_points: Callable[..., Points], truth: LossSurface
) -> None:
    study = study_of(ladder_points(noise_sd=NOISE_SD, seed=3))
    assert study.surface.drift is None
    assert FitStatus.CURVED not in study.surface.statuses()
    assert "drift" not in study.summary()
    best = optimum(study.surface, 10 * study.surface.largest_compute)
    assert best.loss.width / best.loss.value < 0.06


@pytest.mark.parametrize(("name", "allowed"), [("gadre", 0.052), ("compute", 0.0)])
def test_other_laws_allow_for_their_form_as_far_as_published_tables_asked(
    ladder_points: Callable[..., Points], name: str, allowed: float
) -> None:
    """In quadrature, e^4 times beyond the points."""
    points, law = ladder_points(), LAWS[name]
    flops, ratio = points.array("flops"), points.array("tokens") / points.array("size")
    loss = 1.5 + 300 * flops**-0.16 * ((ratio**0.3 + ratio**-0.3) if name == "gadre" else 1.0)
    fit = fit_points(law, replace(points, loss=tuple(loss.tolist())), QUICK)
    place = {"flops": np.exp(4) * fit.largest_compute, "tokens_per_size": 20.0}

    def ends(fit: Fit) -> np.ndarray:
        forecast = fit.predict(*(place[variable] for variable in law.VARIABLES))
        return np.log([forecast.value / forecast.low, forecast.high / forecast.value])

    without = ends(replace(fit, form_rate=0.0))
    assert ends(fit) == pytest.approx(np.hypot(without, allowed), rel=1e-9)


def test_only_laws_in_size_and_tokens_allow_for_their_form() -> None:
    """All others of the catalogue: published tables asked nothing of L(C), and tried no other."""
    rates = {name: form_rate_of(law) for name, law in LAWS.items()}
    in_both = ("hoffmann", "gadre", "muennighoff", "krajewski", "ludziejewski", "abnar")
    assert rates == {name: FORM_RATE if name in in_both else 0.0 for name in LAWS}
