"""Every soft trouble that a descent can end in is named, with what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.curvature import bend_chance
from analysis.health import examine
from analysis.laws import LossSurface, PowerLaw
from analysis.points import Points
from analysis.settings import FitSettings
from analysis.solving import Solved, solve

QUICK = FitSettings(replicates=100, starts=200)


def troubles(solved: Solved, points: Points) -> dict[str, str]:
    variables = (points.array("size"), points.array("tokens"))
    found = examine(solved, points.label, points.budget, variables)
    return {warning.status: warning.sentence for warning in found}


def test_what_a_descent_can_end_in_is_named(ladder_points: Callable[..., Points]) -> None:
    points = ladder_points(noise_sd=0.003)
    variables = (points.array("size"), points.array("tokens"))
    solved = solve(LossSurface, variables, points.array("loss"), QUICK)
    sound = troubles(solved, points)
    assert not {"NOT_CONVERGED", "AT_START", "STARTS_DISAGREE", "ILL_CONDITIONED"} & set(sound)
    cut = troubles(replace(solved, converged=False, steps=7), points)
    assert "cut off after 7 steps" in cut["NOT_CONVERGED"]
    start_P = solved.start_P.copy()
    start_P[3] = solved.theta_P[3]
    still = troubles(replace(solved, start_P=start_P), points)
    assert "alpha stands where its start put it" in still["AT_START"]
    value = solved.optima[0]
    rivals = troubles(replace(solved, optima=(value, 1.05 * value, 9 * value)), points)
    assert "1 other optimum fits almost as well" in rivals["STARTS_DISAGREE"]
    assert "5.00% above" in rivals["STARTS_DISAGREE"]


def test_sizes_and_tokens_that_grow_together_leave_a_ridge(
    ladder_points: Callable[..., Points], truth: LossSurface
) -> None:
    """All runs at one ratio: what is the size's and what the tokens' can't be told."""
    points = ladder_points(sizes=6, budgets=1, seeds=6)
    size = np.geomspace(1e6, 1e8, len(points))
    tokens = 20 * size
    loss = truth(size, tokens) * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(size)))
    solved = solve(LossSurface, (size, tokens), loss, QUICK)
    theta_P = solved.theta_P.copy()
    theta_P[4] = theta_P[3]  # at equal exponents the two terms are one
    found = examine(replace(solved, theta_P=theta_P), points.label, None, (size, tokens))
    sentence = next(w.sentence for w in found if w.status == "ILL_CONDITIONED")
    assert "A" in sentence
    assert "can move together and leave the fit unchanged" in sentence
    assert any(
        "size and tokens rise together (correlation of their logs 1.000, 20 to 20 tokens a unit"
        in warning.sentence
        for warning in found
    )


@pytest.mark.parametrize(("num_points", "bend"), [(12, 0.0), (12, 0.02), (60, 0.004)])
def test_bent_residuals_are_as_rare_as_the_textbook_says(num_points: int, bend: float) -> None:
    """Of a line in logs: the F test of its square, of many points with White's spread beside it."""
    x = np.geomspace(1.0, 30.0, num_points)
    log_x = np.log(x)
    noise = 0.01 * np.random.default_rng(5).uniform(-1.7, 1.7, num_points)  # none is clipped
    noise *= np.where(log_x > 2, 1.5, 1.0)  # more of it towards one end
    log_y = 1.0 - 0.3 * log_x + bend * (log_x - 1.7) ** 2 + noise
    solved = solve(PowerLaw, (x,), np.exp(log_y), replace(QUICK, loss="squares"))

    def left(*columns: np.ndarray) -> np.ndarray:
        rows = np.stack([np.ones(num_points), log_x, *columns[1:]], axis=1)
        return np.asarray(columns[0] - rows @ np.linalg.lstsq(rows, columns[0], rcond=None)[0])

    straight, curved = left(log_y), left(log_y, log_x**2)
    ratio = (straight @ straight - curved @ curved) / (curved @ curved / (num_points - 3))
    if num_points == 60:
        square = left(log_x**2)
        white = (square @ straight) ** 2 / ((square * straight) ** 2).sum()
        assert white < ratio, "the more cautious one is White's"
        ratio = white
    expected = stats.f.sf(ratio, 1, num_points - 3)
    assert 1e-6 < expected < 0.9
    assert bend_chance(solved, (x,)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("what", ["an outlier", "a parameter at its bound"])
def test_bent_residuals_with_an_outlier_or_a_parameter_that_cannot_move(what: str) -> None:
    """The one counts as three robust deviations, the other straightens nothing."""
    x = np.geomspace(1.0, 30.0, 12)
    log_x = np.log(x)
    noise = 0.01 * np.random.default_rng(5).uniform(-1.7, 1.7, 12)
    solved = solve(
        PowerLaw, (x,), np.exp(1.0 - 0.3 * log_x + noise), replace(QUICK, loss="squares")
    )
    own, residual = np.stack([np.ones(12), log_x], axis=1), solved.residual_N.copy()
    if what == "an outlier":
        residual[0] = 0.3
        solved = replace(solved, residual_N=residual)
        # A fit brings about as many residuals to nearly zero as it has parameters: one is left out.
        deviation = np.median(np.sort(np.abs(residual))[1:]) / stats.norm.ppf(0.75)
        assert residual[0] > 4 * deviation
        residual = np.clip(residual, -3 * deviation, 3 * deviation)
    else:
        logsum = solved.form.logsum
        lower_P = np.array([solved.theta_P[0], logsum.lower_P[1]])
        form = replace(solved.form, logsum=replace(logsum, lower_P=lower_P))
        solved = replace(solved, form=form)
        own = (log_x - log_x.mean())[:, None]  # the law's height is that at the middle of x

    def left(rows: np.ndarray) -> float:
        gone = residual - rows @ np.linalg.lstsq(rows, residual, rcond=None)[0]
        return float(gone @ gone)

    square = (log_x - log_x.mean()) ** 2
    straight, curved = left(own), left(np.column_stack([own, square]))
    degrees = 12 - own.shape[1] - 1
    expected = stats.f.sf((straight - curved) / (curved / degrees), 1, degrees)
    assert 1e-6 < expected < 0.9
    assert bend_chance(solved, (x,)) == pytest.approx(expected, rel=1e-3)


def test_a_surface_bends_in_size_and_tokens_together(ladder_points: Callable[..., Points]) -> None:
    """The F test of two squares beside the law's five directions, found by finite differences."""
    points = ladder_points(noise_sd=0.003)
    variables = (points.array("size"), points.array("tokens"))
    solved = solve(LossSurface, variables, points.array("loss"), replace(QUICK, loss="squares"))
    found = solved.form.decode(solved.theta_P[None])[0]
    steps = 1e-5 * np.diag(found)
    own = np.stack(
        [
            np.log(LossSurface.formula(found + step, *variables))
            - np.log(LossSurface.formula(found - step, *variables))
            for step in steps
        ],
        axis=1,
    )
    own /= np.linalg.norm(own, axis=0)
    logs = [np.log(variable) for variable in variables]
    squares = np.stack([(log - log.mean()) ** 2 for log in logs], axis=1)

    def left(rows: np.ndarray) -> float:
        residual = solved.residual_N
        residual = residual - rows @ np.linalg.lstsq(rows, residual, rcond=None)[0]
        return float(residual @ residual)

    assert len(points) < 100, "of more White's spread counts as well"
    straight, curved = left(own), left(np.hstack([own, squares]))
    degrees = len(points) - 7
    expected = stats.f.sf((straight - curved) / 2 / (curved / degrees), 2, degrees)
    assert 1e-3 < expected < 0.99
    assert bend_chance(solved, variables) == pytest.approx(expected, rel=1e-3)
