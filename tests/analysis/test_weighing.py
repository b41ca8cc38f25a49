"""Repeated seeds count by the noise they measure: the rule, its limits, and coverage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from analysis.fitting import fit_law, fit_surface
from analysis.lack_of_fit import UNLIKELY, lack_of_fit
from analysis.laws import Array, LossSurface, SaturatingPowerLaw
from analysis.noise import unnamed_settings
from analysis.points import Points, celled_by, make_points
from analysis.results import Fit
from analysis.seed_weights import Weighting
from analysis.settings import FitSettings
from analysis.summary_lines import fit_lines

QUICK = FitSettings(replicates=100, starts=100)
TRUTH = SaturatingPowerLaw(E=1.6, a=95.0, b=0.094)
CELLS, REPEATED, SEEDS = 20, 4, 8
SEEDS_SD, MISFIT_SD = 0.002, 0.006
DRAWS = 300
LOWEST, HIGHEST = 0.85, 0.95


def ladder(misfit_sd: float, draw: int) -> tuple[Array, Array, tuple[str, ...]]:
    """Compute, loss and cell of 20 budgets, the four cheapest with eight seeds each."""
    rng = np.random.default_rng(draw)
    of_cell = misfit_sd * rng.standard_normal(CELLS)
    cell_N = np.repeat(np.arange(CELLS), np.where(np.arange(CELLS) < REPEATED, SEEDS, 1))
    flops = np.geomspace(1e16, 1e20, CELLS)[cell_N]
    noise = of_cell[cell_N] + SEEDS_SD * rng.standard_normal(len(cell_N))
    return flops, TRUTH(flops) * np.exp(noise), tuple(map(str, cell_N))


def fitted(flops: Array, losses: Array, cells: Sequence[str] | None) -> Fit:
    return fit_law(SaturatingPowerLaw, (flops,), losses, QUICK, name="loss", cells=cells)


@pytest.mark.parametrize("wild", [1.0, 40.0])
def test_what_cells_have_of_their_own_is_told_by_fishers_ratio(wild: float) -> None:
    """Six cells of two seeds about a law of two parameters; a wild cell is no misfit of all."""
    mean_C = np.array([0.03, -0.02, 0.025, -0.035 * wild, 0.015, -0.01])
    residual_N = np.concatenate([mean_C + 0.01, mean_C - 0.01])
    found = lack_of_fit(residual_N, np.tile(np.arange(6), 2), num_parameters=2)
    assert found is not None
    seeds_square = 6 * 2 * 0.01**2 / 6  # squares about the means, over 12 runs less 6 cells
    scaled_C = np.sqrt(2) * np.abs(mean_C)
    most = 3 * np.median(np.sort(scaled_C)[1:]) / stats.norm.ppf(0.75)
    assert (scaled_C.max() > most) == (wild > 1)
    lack = float((np.minimum(scaled_C, most) ** 2).sum())
    assert found.seeds_sd == pytest.approx(seeds_square**0.5)
    assert found.chance == pytest.approx(stats.f.sf(lack / 4 / seeds_square, 4, 6))
    assert found.chance < UNLIKELY
    # A mean square of lack is the seeds' and two runs' worth of the cells' own; 6 - 2 degrees.
    own_square = (lack / 4 - seeds_square) / 2
    assert found.misfit_sd == pytest.approx(own_square**0.5)


@pytest.mark.parametrize(("misfit_sd", "weight"), [(0.0, 4.0), (0.006, 4 / 3.7), (1e3, 1.0)])
def test_a_cell_weighs_as_its_mean(misfit_sd: float, weight: float) -> None:
    """Variance of one run over that of the mean of four, tau² + sigma²/4."""
    found = Weighting(
        seeds_sd=0.002, misfit_sd=misfit_sd, chance=0.0, cells=20, most_seeds=4
    ).of_cell(4)
    runs, mean = misfit_sd**2 + 0.002**2, misfit_sd**2 + 0.002**2 / 4
    assert found == pytest.approx(runs / mean)
    assert found == pytest.approx(weight, rel=0.01)


def test_without_repeats_or_misfit_every_digit_stays(
    ladder_points: Callable[..., Points], truth: LossSurface
) -> None:
    points = ladder_points(noise_sd=0.004, seeds=0)
    assert fit_surface(points, QUICK).weighting is None
    flops, losses, cells = ladder(0.0, draw=0)
    weighed, alike = fitted(flops, losses, cells), fitted(flops, losses, None)
    assert weighed.weighting is not None
    assert weighed.weighting.even
    assert (weighed.law, weighed.replicates, weighed.noise_df) == (
        alike.law, alike.replicates, alike.noise_df,
    )  # fmt: skip
    assert "every run alike" in " ".join(fit_lines(weighed, None))


def test_a_misfit_is_measured_and_said() -> None:
    fits = [fitted(*ladder(MISFIT_SD, draw)) for draw in range(12)]
    found = [fit.weighting for fit in fits if fit.weighting is not None]
    assert np.median([w.seeds_sd for w in found]) == pytest.approx(SEEDS_SD, rel=0.15)
    assert np.median([w.misfit_sd for w in found]) == pytest.approx(MISFIT_SD, rel=0.25)
    text = " ".join(" ".join(fit_lines(fits[0], None)).split())
    assert "so a cell of 8 seeds weighs 1." in text
    assert "cells drawn with replacement" in text


@pytest.mark.slow
def test_intervals_hold_with_repeats_of_cells_the_law_misses() -> None:
    """A new run 30 times beyond, and every coefficient; with every run counted alike the intervals
    are too narrow."""
    rng = np.random.default_rng(17)
    inside: Counter[str] = Counter()
    alike: Counter[str] = Counter()
    for draw in range(DRAWS):
        flops, losses, cells = ladder(MISFIT_SD, draw)
        far = 30 * flops.max()
        sd = np.hypot(MISFIT_SD, SEEDS_SD)
        measured = float(TRUTH(far)) * np.exp(sd * rng.standard_normal())
        _count(inside, fitted(flops, losses, cells), far, measured)
        if draw < DRAWS // 3:
            _count(alike, fitted(flops, losses, None), far, measured)
    shares = {name: count / DRAWS for name, count in inside.items()}
    assert all(LOWEST <= share <= HIGHEST for share in shares.values()), shares
    assert min(alike.values()) / (DRAWS // 3) < LOWEST, alike


def _count(inside: Counter[str], fit: Fit, far: float, measured: float) -> None:
    inside["30x"] += fit.predict(far).contains(measured)
    for name, interval in fit.coefficients.items():
        inside[name] += interval.contains(getattr(TRUTH, name))


def test_seeds_narrow_what_their_means_alone_do_not() -> None:
    """Where the law misses nothing, eight seeds of a cell weigh eight runs, not one."""
    ratios = []
    for draw in range(8):
        flops, losses, cells = ladder(0.0, draw)
        first = np.unique(np.asarray(cells, dtype=int), return_index=True)[1]
        means = np.array([losses[np.asarray(cells) == cells[row]].mean() for row in first])
        weighed, plain = fitted(flops, losses, cells), fitted(flops[first], means, None)
        ratios.append(weighed.coefficients["b"].width / plain.coefficients["b"].width)
    assert np.median(ratios) < 0.9


def test_runs_that_differ_in_a_law_s_variable_are_no_repeats() -> None:
    size, tokens = np.repeat(1e7 * 2.0 ** np.arange(3), 6), np.tile(np.repeat([1e9, 4e9], 3), 3)
    points = make_points(
        size_variable="N", label=["run"] * 18, size=size, tokens=tokens, loss=np.ones(18),
        extra={"granularity": (1.0, 2.0, 2.0) * 6},
    )  # fmt: skip
    assert len(set(points.cell)) == 6
    assert unnamed_settings(points) == ("granularity",)
    parted = celled_by(points, ("size", "tokens", "granularity"))
    assert len(set(parted.cell)) == 12
    assert unnamed_settings(parted) == ()
