"""Learning rate and batch: bowls of known minimum, edges and maxima named, laws recovered."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from analysis.hyperparams import (
    CellOptimum,
    against_compute,
    against_size_and_tokens,
    cell_optima,
)
from analysis.points import Points, make_points
from analysis.results import FitError
from analysis.settings import FitSettings
from model.errors import ConfigError

QUICK = FitSettings(replicates=100, starts=200)
CELLS = list(itertools.product([1e6, 4e6, 1.6e7], [2e7, 8e7, 3.2e8]))
FACTORS = 2.0 ** np.arange(-2, 3)


def lr_law(size: float, tokens: float) -> float:
    return 0.5 * size**-0.2 * tokens**-0.05


def batch_law(size: float, tokens: float) -> float:
    return 0.2 * tokens**0.5


def swept(
    *, batches: bool = True, shift: float = 1.0, sign: float = 1.0, noise_sd: float = 0.0
) -> Points:
    """Around each cell's optimum (times ``shift``) a grid of learning rates and batches."""
    rng = np.random.default_rng(0)
    rows = []
    for size, tokens in CELLS:
        for lr_factor, batch_factor in itertools.product(FACTORS, FACTORS if batches else [1.0]):
            lr = lr_law(size, tokens) * lr_factor * shift
            batch = batch_law(size, tokens) * batch_factor
            off_lr, off_batch = np.log(lr_factor * shift), np.log(batch_factor)
            bowl = 0.02 * off_lr**2 + 0.01 * off_batch**2 - 0.008 * off_lr * off_batch
            loss = (2 + 3 * tokens**-0.05) * np.exp(sign * bowl + noise_sd * rng.standard_normal())
            rows.append((size, tokens, lr, batch, loss))
    size, tokens, lr, batch, loss = np.array(rows).T
    return make_points(
        size_variable="flops_per_token",
        label=[str(i) for i in range(len(rows))],
        size=size,
        tokens=tokens,
        loss=loss,
        flops=size * tokens,
        extra={"peak_lr": tuple(lr.tolist()), "batch_tokens": tuple(batch.tolist())},
    )


def test_minima_of_bowls_in_two_settings() -> None:
    optima = cell_optima(swept())
    assert len(optima) == 9
    for optimum in optima:
        assert (optimum.status, optimum.num_runs) == ("inside", 25)
        assert optimum.peak_lr == pytest.approx(lr_law(optimum.size, optimum.tokens), rel=1e-6)
        assert optimum.batch_tokens == pytest.approx(
            batch_law(optimum.size, optimum.tokens), rel=1e-6
        )
        assert optimum.loss == pytest.approx(2 + 3 * optimum.tokens**-0.05, rel=1e-6)
        low, high = optimum.lr_range
        assert low < optimum.peak_lr < high


def test_a_budget_in_whole_batches_is_one_cell() -> None:
    """Five batches leave five token counts a fraction of a percent apart."""
    points = swept()
    batch, tokens = np.array(points.extra["batch_tokens"]), points.array("tokens")
    whole = np.ceil(tokens / batch) * batch
    assert len(set(whole.tolist())) > 9
    rounded = replace(points, tokens=tuple(whole.tolist()), flops=tuple(points.size * whole))
    optima = cell_optima(rounded)
    assert [(o.status, o.num_runs) for o in optima] == [("inside", 25)] * 9
    law = against_size_and_tokens(optima, "batch_tokens")
    assert law.token_exponent.value == pytest.approx(0.5, abs=0.01)


def test_a_batch_that_was_not_varied_is_no_optimum() -> None:
    alone = cell_optima(swept(batches=False))
    assert {optimum.varied for optimum in alone} == {("peak_lr",)}
    with pytest.raises(FitError, match=r"0 of 9 cells .* of one value"):
        against_compute(alone, "batch_tokens", QUICK)
    both = (*cell_optima(swept()), *alone)
    assert against_compute(both, "batch_tokens", QUICK).num_points == 9
    assert against_compute(both, "peak_lr", QUICK).num_points == 18


def test_near_optimal_learning_rates_lose_a_quarter_percent() -> None:
    optimum = cell_optima(swept(batches=False))[0]
    off = np.log(optimum.lr_range[1] / optimum.peak_lr)
    assert np.exp(0.02 * off**2) == pytest.approx(1.0025, rel=1e-6)


def test_laws_of_the_optima_come_back() -> None:
    optima = cell_optima(swept(noise_sd=0.0005))
    lr = against_size_and_tokens(optima, "peak_lr")
    assert lr.size_exponent.contains(-0.2)
    assert lr.token_exponent.contains(-0.05)
    assert lr(4e6, 8e7) == pytest.approx(lr_law(4e6, 8e7), rel=0.05)
    batch = against_size_and_tokens(optima, "batch_tokens")
    assert batch.token_exponent.value == pytest.approx(0.5, abs=0.05)
    fit = against_compute(optima, "peak_lr", QUICK)
    assert fit.coefficients["b"].value < 0
    assert fit.num_points == 9


def test_intervals_of_a_plane_are_the_textbook_ones() -> None:
    """Nine cells, sizes and token counts four times apart: x is -log 4, 0 or log 4. What is left
    over is orthogonal to the plane, so its exponents stay and s² is its squares over 9 - 3."""
    step = np.log(4.0)
    left = 0.01 * np.array([1, -2, 1, -2, 4, -2, 1, -2, 1.0])  # (1, -2, 1) times itself
    cells = [
        CellOptimum(
            size=size,
            tokens=tokens,
            flops=size * tokens,
            peak_lr=lr_law(size, tokens) * float(np.exp(off)),
            batch_tokens=1.0,
            loss=2.0,
            status="inside",
            lr_range=(0.0, 1.0),
            num_runs=5,
        )
        for (size, tokens), off in zip(CELLS, left, strict=True)
    ]
    law = against_size_and_tokens(cells, "peak_lr")
    student = 1.943180  # its 95% quantile at 6 degrees of freedom
    half = student * (float((left**2).sum()) / 6 / (6 * step**2)) ** 0.5
    for found, value in ((law.size_exponent, -0.2), (law.token_exponent, -0.05)):
        assert found.value == pytest.approx(value)
        assert found.high - found.value == pytest.approx(half, rel=1e-5)
        assert found.value - found.low == pytest.approx(half, rel=1e-5)
    assert (law.coefficient, law.num_points) == (pytest.approx(0.5), 9)
    assert law.inverse(law(3e6, 5e7), 3e6) == pytest.approx(5e7)


def test_an_optimum_at_the_edge_is_a_bound_and_enters_no_law() -> None:
    optima = cell_optima(swept(batches=False, shift=16.0))
    for optimum in optima:
        assert optimum.status == "at_edge"
        assert optimum.peak_lr == pytest.approx(4 * lr_law(optimum.size, optimum.tokens), rel=1e-6)
        assert "bound" in optimum.note
    with pytest.raises(FitError, match=r"inside what was tried.*\(9 at the edge\); widen"):
        against_compute(optima, "peak_lr", QUICK)


def test_a_bowl_that_opens_downward_has_no_optimum() -> None:
    assert {o.status for o in cell_optima(swept(sign=-1.0))} == {"opens_downward"}


def test_too_few_values_are_said() -> None:
    points = swept(batches=False)
    few = make_points(
        size_variable="flops_per_token", label=points.label[:2], size=points.array("size")[:2],
        tokens=points.array("tokens")[:2], loss=points.array("loss")[:2],
        flops=points.array("flops")[:2],
        extra={name: column[:2] for name, column in points.extra.items()},
    )  # fmt: skip
    (optimum,) = cell_optima(few)
    assert optimum.status == "too_few"
    assert "three values of each" in optimum.note


@pytest.mark.parametrize("factor", [1.3, 1 / 1.3])
def test_a_run_about_to_diverge_does_not_tilt_the_bowl(factor: float) -> None:
    """Nor one whose loss was read too low."""
    points = swept()
    loss = points.array("loss")
    for cell in range(9):
        loss[25 * cell + 24] *= factor
    bent = make_points(
        size_variable="flops_per_token", label=points.label, size=points.array("size"),
        tokens=points.array("tokens"), loss=loss, flops=points.array("flops"), extra=points.extra,
    )  # fmt: skip
    for optimum in cell_optima(bent):
        assert optimum.peak_lr == pytest.approx(lr_law(optimum.size, optimum.tokens), rel=0.05)


def test_points_without_learning_rates_say_so() -> None:
    points = make_points(
        size_variable="N", label=["a"], size=np.array([1e6]), tokens=np.array([1e7]),
        loss=np.array([3.0]), flops=np.array([1e13]),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="learning-rate law needs peak_lr"):
        cell_optima(points)
