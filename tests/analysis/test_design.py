"""The next best run: its promised interval comes true, it beats chance, it keeps to its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.design import Candidate, next_runs
from analysis.fitting import fit_power_law, fit_surface
from analysis.laws import LossSurface
from analysis.points import Points, take
from analysis.settings import FitSettings
from model.errors import ConfigError

QUICK = FitSettings(replicates=100, starts=200, loss="squares")
NOISE_SD = 0.01


def measured(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(3 * x**-0.2 * np.exp(NOISE_SD * rng.standard_normal(len(x))))


def line(rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """A straight line in log-log through 40 points: the linear case, where design is exact."""
    x = np.tile(np.geomspace(1, 10, 8), 5)
    return x, fit_power_law(x.tolist(), measured(x, rng).tolist(), QUICK, name="y")


def candidates() -> list[Candidate]:
    return [Candidate(label=f"{x:g}", x=(x,), cost=x, most=3) for x in (1.0, 3.0, 10.0, 30.0, 90.0)]


def test_the_promised_half_width_is_the_textbook_one() -> None:
    """For a line: var = sigma² · (1 + g'(J'J)^-1 g), with every chosen run added to J."""
    x, fit = line(np.random.default_rng(0))
    design = next_runs(fit, (x,), candidates(), (300.0,), budget=200.0)
    every = np.concatenate([x, [float(run.label) for run in design.runs]])
    rows = np.stack([np.ones(len(every)), np.log(every)], axis=1)
    target = np.array([1.0, np.log(300.0)])
    variance = 1 + target @ np.linalg.solve(rows.T @ rows, target)
    quantile = 1.686  # Student's 95% quantile at 38 degrees of freedom
    expected = quantile * fit.noise_sd * variance**0.5
    assert design.runs[-1].half_width == pytest.approx(expected, rel=0.01)
    assert design.before > design.runs[-1].half_width > design.floor
    widths = [run.half_width for run in design.runs]
    assert widths == sorted(widths, reverse=True), "every run narrows it"


def test_what_is_known_before_any_run_is_three_e_folds_and_half_an_exponent() -> None:
    """One run seen and much noise: var = sigma² + g'(J'J/sigma² + diag(1/3², 1/0.5²))^-1 g."""
    x, fit = line(np.random.default_rng(0))
    design = next_runs(fit, (x[:1],), candidates(), (300.0,), budget=200.0, seeds_sd=1.0)
    pool = [c.x[0] for c in candidates()]
    middle = np.log([x[0], *pool, 300.0]).mean()  # the level is that of the line there

    def half_width(seen: list[float]) -> float:
        rows = np.stack([np.ones(len(seen)), np.log(seen) - middle], axis=1)
        target = np.array([1.0, np.log(300.0) - middle])
        information = rows.T @ rows + np.diag([1 / 9, 4])
        return float(1.686 * (1 + target @ np.linalg.solve(information, target)) ** 0.5)

    assert design.before == pytest.approx(half_width([x[0]]), rel=1e-3)
    made = [float(run.label) for run in design.runs]
    assert design.runs[-1].half_width == pytest.approx(half_width([x[0], *made]), rel=1e-3)
    assert design.floor == pytest.approx(1.686, rel=1e-3)


def test_budget_seeds_and_tolerance_are_kept() -> None:
    x, fit = line(np.random.default_rng(0))
    design = next_runs(fit, (x,), candidates(), (300.0,), budget=35.0)
    assert design.runs[-1].spent <= 35.0
    assert design.stop == "the budget is spent"
    last = next_runs(fit, (x,), candidates()[1:], (300.0,), budget=3.0)
    assert [run.label for run in last.runs] == ["3"], "a run may take all that is left"
    labels = [run.label for run in next_runs(fit, (x,), candidates(), (300.0,), budget=1e9).runs]
    assert sorted(labels) == sorted([c.label for c in candidates()] * 3)
    enough = next_runs(fit, (x,), candidates(), (300.0,), budget=1e9, tolerance=design.before)
    assert enough.runs == ()
    assert "within the tolerance" in enough.stop
    with pytest.raises(ConfigError, match="budget must be positive"):
        next_runs(fit, (x,), candidates(), (300.0,), budget=0.0)
    with pytest.raises(ConfigError, match="needs candidates"):
        next_runs(fit, (x,), [], (300.0,), budget=1.0)


def test_the_first_run_is_the_best_of_all_by_trial() -> None:
    """Each candidate tried alone: none narrows the forecast more per cost than the one chosen."""
    x, fit = line(np.random.default_rng(1))
    pool = candidates()
    first = next_runs(fit, (x,), pool, (300.0,), budget=1e9).runs[0]

    def variance(extra: list[float]) -> float:
        every = np.concatenate([x, extra])
        rows = np.stack([np.ones(len(every)), np.log(every)], axis=1)
        target = np.array([1.0, np.log(300.0)])
        return float(target @ np.linalg.solve(rows.T @ rows, target))

    gains = {c.label: (variance([]) - variance([c.x[0]])) / c.cost for c in pool}
    assert first.label == max(gains, key=lambda label: gains[label])


@pytest.mark.slow
def test_a_design_forecasts_better_than_chance_for_the_same_compute(
    ladder_points: Callable[..., Points], truth: LossSurface
) -> None:
    """A quarter of a 7 by 6 grid, spent by design (one refit halfway) or at random, 12 draws."""
    settings = FitSettings(replicates=100, starts=200)
    errors: dict[str, list[float]] = {"design": [], "random": []}
    for draw in range(12):
        rng = np.random.default_rng(draw)
        pool = ladder_points(sizes=7, budgets=6, seeds=0)
        flops = pool.array("flops")
        limit = 0.25 * flops.sum()
        target = (pool.array("size").max() * 4, pool.array("tokens").max() * 4)

        def error(rows: list[int], seed: int, pool: Points = pool, target=target) -> float:  # type: ignore[no-untyped-def]
            losses = pool.array("loss")[rows] * np.exp(
                0.005 * np.random.default_rng(seed).standard_normal(len(rows))
            )
            chosen = take(pool, rows)
            fit = fit_surface(replace(chosen, loss=tuple(losses.tolist())), settings)
            return abs(fit.predict(*target).value / float(truth(*target)) - 1)

        rows = np.argsort(flops)[:10].tolist()
        for share in (0.5, 1.0):
            seen = take(pool, rows)
            noisy = seen.array("loss") * np.exp(0.005 * rng.standard_normal(len(rows)))
            fit = fit_surface(replace(seen, loss=tuple(noisy.tolist())), settings)
            options = [
                Candidate(label=str(i), x=(pool.size[i], pool.tokens[i]), cost=flops[i], most=4)
                for i in range(len(pool))
            ]
            left = share * limit - flops[rows].sum()
            design = next_runs(
                fit, (seen.array("size"), seen.array("tokens")), options, target, left
            )
            rows = [*rows, *(int(run.label) for run in design.runs)]
        assert flops[rows].sum() <= limit
        errors["design"].append(error(rows, 100 + draw))
        random: list[int] = []
        for i in rng.permutation(len(pool)).tolist():
            if flops[random].sum() + flops[i] <= limit:
                random.append(i)
        errors["random"].append(error(random, 100 + draw))
    assert np.median(errors["design"]) < 0.8 * np.median(errors["random"]), errors


def test_no_tolerance_below_the_measured_floor_is_promised() -> None:
    """Seeds that differ by more than the residuals widen every promise and end the search."""
    x, fit = line(np.random.default_rng(0))
    pool, target = candidates(), (300.0,)
    plain = next_runs(fit, (x,), pool, target, budget=1e9)
    wide = next_runs(fit, (x,), pool, target, budget=1e9, seeds_sd=3 * fit.noise_sd)
    assert wide.floor == pytest.approx(3 * plain.floor)
    assert all(run.half_width > wide.floor for run in wide.runs)
    within = next_runs(fit, (x,), pool, target, 1e9, tolerance=1.3 * plain.floor)
    assert "within the tolerance" in within.stop
    many = [replace(candidate, most=400) for candidate in pool]
    never = next_runs(
        fit, (x,), many, target, 1e9, tolerance=1.3 * plain.floor, seeds_sd=3 * fit.noise_sd
    )
    assert "no run reaches the tolerance" in never.stop
    assert never.runs[-1].half_width <= 1.05 * never.floor
    assert never.runs[-1].spent < 1e5, "and it stops spending"
    asked = next_runs(fit, (x,), many, target, 1.1e5, seeds_sd=3 * fit.noise_sd)
    assert asked.stop != never.stop, "without a tolerance the whole budget is to be spent"
    assert asked.runs[-1].spent > 1e4
