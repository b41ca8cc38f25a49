"""Batched descent and variable projection against scipy, one problem at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, nnls

from analysis.descent import minimise
from analysis.forms import Form, make_form
from analysis.laws import Array, LossSurface
from analysis.logsum import Loss
from analysis.projection import best_of_regions, non_negative, scatter, starts

TRUTH = [1.7, 50.0, 70.0, 0.35, 0.37]
SIZES = np.repeat(1e6 * 2.0 ** np.arange(5), 4)
TOKENS = np.tile(2e6 * 2.0 ** np.arange(4), 5)
HUBER = Loss(kind="huber", delta=2e-3)


def noisy(seed: int, noise_sd: float = 0.004) -> tuple[Form, Array]:
    rng = np.random.default_rng(seed)
    losses = LossSurface.formula(TRUTH, SIZES, TOKENS)
    log_losses = np.log(losses) + noise_sd * rng.standard_normal(len(losses))
    return make_form(LossSurface, (SIZES, TOKENS), np.exp(log_losses)), log_losses


@pytest.mark.parametrize("loss", [HUBER, Loss(kind="squares", delta=np.inf)])
def test_no_worse_than_scipy_from_the_truth(loss: Loss) -> None:
    for seed in range(5):
        form, log_losses = noisy(seed)
        start = form.encode(np.array([TRUTH]))
        ours = minimise(form.logsum, start, log_losses, np.ones(20), loss)

        def objective(theta: Array, form: Form = form, log_losses: Array = log_losses) -> float:
            return 1e4 * float(loss.rho(log_losses - form.logsum.log_values(theta[None])[0]).sum())

        theirs = minimize(
            objective, start[0], method="Nelder-Mead", options={"maxiter": 6000, "fatol": 1e-12}
        )
        assert ours.converged_B[0]
        assert ours.objective_B[0] <= theirs.fun / 1e4 * (1 + 1e-9)


def test_a_batch_gives_what_its_problems_give_alone() -> None:
    form, log_losses = noisy(0)
    counts = np.random.default_rng(1).multinomial(20, np.full(20, 0.05), size=7).astype(float)
    start = np.repeat(form.encode(np.array([TRUTH])), 7, axis=0)
    together = minimise(form.logsum, start, log_losses, counts, HUBER)
    for row in range(7):
        alone = minimise(form.logsum, start[:1], log_losses, counts[row : row + 1], HUBER)
        np.testing.assert_allclose(together.theta_BP[row], alone.theta_BP[0], rtol=1e-9, atol=1e-9)


def test_counts_are_repeated_points() -> None:
    """A replicate that drew a point three times is a fit to three copies of it."""
    form, log_losses = noisy(2)
    counts = np.random.default_rng(4).multinomial(20, np.full(20, 0.05)).astype(float)
    rows = np.repeat(np.arange(20), counts.astype(int))
    start = form.encode(np.array([TRUTH]))
    weighted = minimise(form.logsum, start, log_losses, counts[None], HUBER)
    copied = minimise(form.logsum.take(rows), start, log_losses[rows], np.ones(len(rows)), HUBER)
    np.testing.assert_allclose(weighted.theta_BP, copied.theta_BP, rtol=1e-7, atol=1e-7)


def test_absolute_deviation_passes_through_as_many_points_as_parameters() -> None:
    form, log_losses = noisy(3)
    start = form.encode(np.array([TRUTH]))
    found = minimise(form.logsum, start, log_losses, np.ones(20), Loss(kind="lad", delta=0.0))
    residual = np.abs(log_losses - form.logsum.log_values(found.theta_BP)[0])
    assert (residual < 1e-6).sum() >= 5
    assert found.objective_B[0] == pytest.approx(residual.sum())


def test_parameters_stay_within_their_bounds() -> None:
    """Losses that rise with size ask for a negative exponent or none."""
    losses = LossSurface.formula(TRUTH, SIZES, TOKENS) * (SIZES / 1e6) ** 0.4
    form = make_form(LossSurface, (SIZES, TOKENS), losses)
    found = minimise(
        form.logsum, form.encode(np.array([TRUTH])), np.log(losses), np.ones(20), HUBER
    )
    assert (found.theta_BP >= form.logsum.lower_P).all()
    assert (found.theta_BP <= form.logsum.upper_P).all()


def test_projection_solves_the_coefficients_exactly_at_the_true_exponents() -> None:
    losses = LossSurface.formula(TRUTH, SIZES, TOKENS)
    form = make_form(LossSurface, (SIZES, TOKENS), losses)
    theta, objective = starts(
        form.logsum, np.log(losses), np.ones(20), HUBER, np.array([TRUTH[3:], [0.9, 0.1]])
    )
    assert objective[0] < 1e-18 < 1e-6 < objective[1]
    np.testing.assert_allclose(form.decode(theta[:1])[0], TRUTH, rtol=1e-7)


def test_non_negative_least_squares_against_scipy() -> None:
    rng = np.random.default_rng(7)
    columns = rng.standard_normal((4, 30, 12)) + 0.3
    target = rng.standard_normal((30, 12)) + 0.5
    weight = rng.uniform(0.1, 2.0, (30, 12))
    ours = non_negative(columns, target, weight)
    assert (ours == 0).any(), "no problem with a coefficient at zero: the test would prove little"
    for problem in range(30):
        root = np.sqrt(weight[problem])
        theirs, _ = nnls((columns[:, problem] * root).T, target[problem] * root)
        np.testing.assert_allclose(ours[problem], theirs, atol=1e-8)


def test_starts_are_spread_evenly_and_every_region_is_kept() -> None:
    unit = scatter(4500, 2)
    counts, _, _ = np.histogram2d(unit[:, 0], unit[:, 1], bins=10, range=[[0, 1], [0, 1]])
    assert counts.min() >= 40, "45 are expected in each of 100 boxes"
    picked = best_of_regions(unit, unit, np.random.default_rng(0).uniform(size=4500))
    assert len(picked) == 64
