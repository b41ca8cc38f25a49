"""Known laws come back: to 1e-6 without noise; a small sweep, a frontier, a power law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.fitting import fit_compute_law, fit_law, fit_power_law, fit_surface, frontier_fit
from analysis.laws import LossSurface, SaturatingPowerLaw
from analysis.points import Points, make_points
from analysis.results import FitError, FitStatus
from analysis.settings import FitSettings

Draw = Callable[..., Points]
QUICK = FitSettings(replicates=200, starts=500)

SURFACES = [
    LossSurface(E=1.7, A=50.35, B=69.3, alpha=0.35, beta=0.37),
    LossSurface(E=0.4, A=9.0, B=400.0, alpha=0.2, beta=0.5),
    LossSurface(E=2.5, A=3e4, B=12.0, alpha=0.8, beta=0.25),
]


@pytest.mark.parametrize("loss", ["huber", "lad", "squares"])
@pytest.mark.parametrize("law", SURFACES)
def test_parameters_come_back_without_noise(
    law: LossSurface, loss: str, ladder_points: Draw
) -> None:
    fit = fit_surface(ladder_points(law), FitSettings(replicates=100, loss=loss))  # type: ignore[arg-type]
    np.testing.assert_allclose(fit.law.parameters, law.parameters, rtol=1e-6)
    for name, interval in fit.coefficients.items():
        assert interval.low == pytest.approx(getattr(law, name), rel=1e-5)
        assert interval.high == pytest.approx(getattr(law, name), rel=1e-5)
    largest = law.optimum(30 * fit.largest_compute)
    forecast = fit.predict(largest.size, largest.tokens)
    assert forecast.value == pytest.approx(largest.loss, rel=1e-6)
    assert forecast.extrapolation_ratio == pytest.approx(30)
    assert {warning.status for warning in fit.warnings} <= {FitStatus.EDGE_OPTIMUM.name}


def test_size_may_be_a_parameter_count(ladder_points: Draw) -> None:
    law = LossSurface(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37, flops_per_size_token=6.0)
    base = ladder_points(law)
    points = make_points(
        size_variable="active_params",
        label=base.label,
        size=base.array("size"),
        tokens=base.array("tokens"),
        loss=base.array("loss"),
        flops=base.array("flops"),
    )
    fit = fit_surface(points, QUICK)
    assert isinstance(fit.law, LossSurface)
    assert fit.law.flops_per_size_token == pytest.approx(6.0)
    assert fit.law.optimum(1e17).loss == pytest.approx(law.optimum(1e17).loss, rel=1e-6)


def test_outliers_do_not_move_a_robust_fit_and_are_named(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.002, sizes=6, budgets=5)
    loss = points.array("loss")
    loss[4] *= 1.3
    broken = make_points(
        size_variable=points.size_variable,
        label=points.label,
        size=points.array("size"),
        tokens=points.array("tokens"),
        loss=loss,
        flops=points.array("flops"),
    )
    robust = fit_surface(broken, QUICK)
    squares = fit_surface(broken, FitSettings(replicates=100, starts=500, loss="squares"))
    truth = 1.9
    clean = fit_surface(points, QUICK).predict(1e8, 1e8).value
    assert abs(robust.predict(1e8, 1e8).value - clean) < 0.005 * truth
    assert abs(squares.predict(1e8, 1e8).value - clean) > 0.02 * truth
    sentences = {w.status: w.sentence for w in robust.warnings}
    assert "run-4" in sentences["OUTLIERS"]
    assert "without:" in sentences["OUTLIERS"]
    assert robust.noise_sd < 0.01, "one outlier must not widen every forecast"


@pytest.mark.parametrize("flops_per_size_token", [1.0, 6.0])
def test_the_frontier_is_the_optimum_of_every_replicate(
    ladder_points: Draw, flops_per_size_token: float
) -> None:
    """Where the size is M, and where it is a parameter count."""
    truth = replace(SURFACES[0], flops_per_size_token=flops_per_size_token)
    points = ladder_points(truth, noise_sd=0.004)
    if flops_per_size_token != 1:
        points = replace(points, size_variable="active_params")
    fit = fit_surface(points, QUICK)
    frontier = frontier_fit(fit)
    assert isinstance(fit.law, LossSurface)
    flops = 7 * fit.largest_compute
    assert float(frontier.law(flops)) == pytest.approx(fit.law.optimum(flops).loss, rel=1e-10)
    for row in range(0, 200, 20):
        surface = replace(
            fit.law, **dict(zip(LossSurface.PARAMETERS, fit.replicates[row], strict=True))
        )
        assert surface.flops_per_size_token == pytest.approx(flops_per_size_token)
        if surface.A > 0 and surface.B > 0:
            expected = surface.optimum(flops).loss
            E, a, b = frontier.replicates[row]
            assert E + a * flops**-b == pytest.approx(expected, rel=1e-9)
    assert frontier.predict(flops).extrapolation_ratio == pytest.approx(7)


def test_saturating_law_comes_back_and_keeps_its_interval() -> None:
    truth = SaturatingPowerLaw(E=1.6, a=95.18, b=0.0941)
    flops = 10.0 ** np.arange(14, 22)
    fit = fit_law(SaturatingPowerLaw, (flops,), truth(flops), QUICK, name="loss")
    np.testing.assert_allclose(fit.law.parameters, truth.parameters, rtol=1e-6)


def test_envelope_takes_the_lowest_run_of_each_budget(ladder_points: Draw) -> None:
    points = ladder_points()
    fit = fit_compute_law(points, QUICK)
    assert fit.num_points == len(set(points.budget)) == 8
    flops = points.array("flops")
    for rank in set(points.budget):
        of_rank = [loss for loss, b in zip(points.loss, points.budget, strict=True) if b == rank]
        at = float(np.mean(flops[np.asarray(points.budget) == rank]))
        assert float(fit.law(at)) <= min(of_rank) * 1.02


@pytest.mark.parametrize(("a", "b"), [(1.1576, -0.1529), (0.0694, 0.3644)])
def test_power_law_of_either_sign(a: float, b: float) -> None:
    """The published learning-rate and batch laws (arXiv:2507.17702, eq. 3)."""
    x = 10.0 ** np.arange(17, 22)
    fit = fit_power_law(x.tolist(), (a * x**b).tolist(), QUICK, name="peak_lr")
    np.testing.assert_allclose(fit.law.parameters, [a, b], rtol=1e-6)


def test_too_few_points_is_no_estimate(ladder_points: Draw) -> None:
    with pytest.raises(FitError, match="5 points for the 5 parameters"):
        fit_surface(ladder_points(sizes=5, budgets=1, seeds=0), QUICK)


def test_the_same_seed_gives_the_same_fit(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.004)
    assert fit_surface(points, QUICK) == fit_surface(points, QUICK)
    other = FitSettings(replicates=200, starts=500, seed=1)
    assert fit_surface(points, QUICK).replicates != fit_surface(points, other).replicates


def test_an_interval_widens_with_distance_and_with_level(ladder_points: Draw) -> None:
    fit = fit_surface(ladder_points(noise_sd=0.004), QUICK)
    near, far = fit.predict(1e7, 1e7), fit.predict(1e9, 1e9)
    assert far.width > 2 * near.width
    assert (
        fit.predict(1e9, 1e9, level=0.5).width < far.width < fit.predict(1e9, 1e9, level=0.99).width
    )
    assert near.width > 2 * 1.6 * 0.5 * fit.noise_sd * near.value, "a new run's noise is in it"
    value, low, high = fit.predict_many(np.array([1e7, 1e9]), np.array([1e7, 1e9]))
    assert (value[1], low[1], high[1]) == pytest.approx((far.value, far.low, far.high))


def test_delta_follows_the_rule(ladder_points: Draw) -> None:
    few = fit_surface(ladder_points(noise_sd=0.005), QUICK).objective
    assert few.delta == pytest.approx(1.345 * 0.005, rel=0.5)
    assert few.starts == QUICK.starts
    many = fit_surface(ladder_points(noise_sd=0.005, sizes=10, budgets=10), QUICK).objective
    assert many.delta == 1e-3
    given = FitSettings(replicates=100, starts=500, huber_delta=0.02)
    assert fit_surface(ladder_points(noise_sd=0.005), given).objective.delta == 0.02


@pytest.mark.parametrize(("loss", "power"), [("lad", 1), ("squares", 2)])
def test_the_objective_is_of_the_loss_asked_for(ladder_points: Draw, loss: str, power: int) -> None:
    """Half the squares, or the absolute values, of log-loss; every run counts once."""
    points = ladder_points(noise_sd=0.005, seeds=0)
    settings = FitSettings(replicates=100, starts=500, loss=loss)  # type: ignore[arg-type]
    fit = fit_surface(points, settings)
    law = fit.law(points.array("size"), points.array("tokens"))
    residual_N = np.abs(np.log(points.array("loss") / law))
    assert (fit.objective.loss, fit.objective.delta) == (loss, None)
    assert fit.objective.value == pytest.approx(float((residual_N**power).sum()) / power)


def test_starts_on_a_part_of_very_many_points_end_in_a_fit_of_all(
    ladder_points: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = ladder_points(noise_sd=0.005)
    squares = replace(QUICK, loss="squares")
    whole = fit_surface(points, squares)
    monkeypatch.setattr("analysis.solving.MOST_SEARCHED", 15)
    parted = fit_surface(points, squares)
    np.testing.assert_allclose(parted.law.parameters, whole.law.parameters, rtol=1e-4)
    assert parted.objective.value == pytest.approx(whole.objective.value, rel=1e-9)


def test_health_of_a_sweep_that_never_crosses_its_optimum() -> None:
    """All runs trained far too short: the optimal size lies below every size tried."""
    law = SURFACES[0]
    size = np.repeat(1e8 * 2.0 ** np.arange(4), 3)
    tokens = np.tile(1e5 * 2.0 ** np.arange(3), 4)
    points = make_points(
        size_variable="flops_per_token",
        label=[f"run-{i}" for i in range(12)],
        size=size,
        tokens=tokens,
        loss=law(size, tokens) * np.exp(0.001 * np.random.default_rng(0).standard_normal(12)),
        flops=size * tokens,
    )
    warnings = {w.status: w.sentence for w in fit_surface(points, QUICK).warnings}
    assert "below every size tried" in warnings["EDGE_OPTIMUM"]
    assert FitStatus.UNMEASURED_NOISE.name in warnings


def test_a_term_the_points_do_not_ask_for_is_at_its_bound(ladder_points: Draw) -> None:
    law = LossSurface(E=1e-12, A=20.0, B=30.0, alpha=0.2, beta=0.2)
    fit = fit_surface(ladder_points(law, noise_sd=0.003, seed=3), QUICK)
    assert fit.coefficients["E"].value == 0.0
    assert any(w.status == "AT_BOUND" and "E = 0" in w.sentence for w in fit.warnings)


def test_misfit_is_told_from_noise(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.0)
    wave = np.exp(0.02 * np.sin(np.arange(len(points)) * 2.0))
    wave[20:] = wave[5] * np.exp(1e-4 * np.arange(3))  # the repeated cell is quiet
    bent = make_points(
        size_variable=points.size_variable,
        label=points.label,
        size=points.array("size"),
        tokens=points.array("tokens"),
        loss=points.array("loss") * wave,
        flops=points.array("flops"),
    )
    assert "MISFIT" in {w.status for w in fit_surface(bent, QUICK).warnings}


def test_few_points_and_few_values_are_named(ladder_points: Draw) -> None:
    fit = fit_surface(ladder_points(noise_sd=0.002, sizes=2, budgets=4, seeds=0), QUICK)
    warnings = {w.status: w.sentence for w in fit.warnings}
    assert "8 points for 5 parameters" in warnings["FEW_POINTS"]
    assert "2 distinct values of size" in warnings["FEW_BUDGETS"]
