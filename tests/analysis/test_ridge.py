"""Two values of a variable leave a ridge of optima; the intervals go all along it."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.allocation import optimum
from analysis.fitting import fit_surface
from analysis.laws import LossSurface
from analysis.points import Points, make_points
from analysis.ridge import beginnings
from analysis.settings import FitSettings
from analysis.solving import solve

LAW = LossSurface(E=1.7, A=50.35, B=69.3, alpha=0.35, beta=0.37)
SIZES, TOKENS = 1e6 * 2.0 ** np.arange(5), 2e6 * 2.0 ** np.arange(4)


def drawn(size_V: np.ndarray, tokens_V: np.ndarray, seed: int) -> Points:
    """Two runs of every size and token count, 0.4% apart."""
    size, tokens = (grid.ravel().repeat(2) for grid in np.meshgrid(size_V, tokens_V))
    noise = np.exp(0.004 * np.random.default_rng(seed).standard_normal(len(size)))
    return make_points(
        size_variable="flops_per_token",
        label=[f"run {index}" for index in range(len(size))],
        size=size,
        tokens=tokens,
        flops=size * tokens,
        loss=LAW(size, tokens) * noise,
    )


@pytest.mark.parametrize(
    ("size_V", "tokens_V", "open_ones", "draws"),
    [
        pytest.param(SIZES, TOKENS[[0, -1]], ("E", "beta"), 6, id="two token counts"),
        pytest.param(
            SIZES[[0, -1]], TOKENS, ("E", "alpha"), 2, id="two sizes", marks=pytest.mark.slow
        ),
    ],
)
def test_intervals_go_all_along_the_ridge(
    size_V: np.ndarray, tokens_V: np.ndarray, open_ones: tuple[str, str], draws: int
) -> None:
    largest = SIZES[-1] * TOKENS[-1]
    held = 0
    for seed in range(draws):
        fit = fit_surface(drawn(size_V, tokens_V, seed), FitSettings(starts=100, replicates=150))
        E, exponent = (fit.coefficients[name] for name in open_ones)
        assert E.contains(LAW.E), "E alone was said to within 0.1 and covered in a quarter"
        assert exponent.contains(getattr(LAW, open_ones[1]))
        assert exponent.high > 4 * exponent.low, "nothing is known of it"
        forecast = fit.predict(SIZES[-1] * 10**0.5, TOKENS[-1] * 10**0.5)
        held += forecast.contains(float(LAW(SIZES[-1] * 10**0.5, TOKENS[-1] * 10**0.5)))
        held += optimum(fit, 10 * largest).size.contains(LAW.optimum(10 * largest).size)
    assert held >= 2 * draws - 1


def test_three_values_leave_no_ridge() -> None:
    """The replicates begin at the optimum, as they always did."""
    points, settings = drawn(SIZES, TOKENS[[0, 1, -1]], 0), FitSettings(starts=100, replicates=150)
    loss = points.array("loss")
    solved = solve(LossSurface, (points.array("size"), points.array("tokens")), loss, settings)
    assert beginnings(solved, np.log(loss)).tolist() == [solved.theta_P.tolist()]
    fit = fit_surface(points, settings)
    assert fit.condition_number < 1e3
    assert fit.coefficients["E"].width < 1.0
