"""The routed law fitted: linear at given E_start and E_max, so a search in those two is all.

E_max is weakly determined on most data: where many values of it fit as well, a warning says which,
and the law is to be judged by its forecasts and not by that parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from analysis.laws import Array
from analysis.results import Fit, FitStatus, FitWarning
from analysis.routed import RoutedLaw, saturated
from analysis.separable import fit_separable, require_points
from analysis.settings import FitSettings
from model.config import require

START_RANGE = (1.0, 30.0)
MAX_RANGE = (40.0, 1e5)
GRID = 40
REFINEMENTS = 10
"""Each shrinks the grid to three eighths around its best point."""
FLAT = 1.01
"""Error, over the best one's, up to which an E_max counts as as good."""
WIDE = 1.3
"""Ratio of the ends of the E_max that are as good, from which it is said."""


def fit_routed(
    size: Sequence[float] | Array,
    num_experts: Sequence[float] | Array,
    loss: Sequence[float] | Array,
    settings: FitSettings | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> Fit:
    """Least squares in log loss, as published; the search is exhaustive in E_start and E_max.

    Raises:
        FitError: six points or fewer.
        ConfigError: another residual than that of the logs.
    """
    settings = settings or FitSettings()
    require(
        settings.residual == "log", "the routed law is fitted to log losses; leave fit.residual=log"
    )
    size_N, experts_N, loss_N = (np.asarray(v, dtype=float) for v in (size, num_experts, loss))
    require_points(RoutedLaw, len(loss_N))
    log_N = np.log(loss_N)
    ones_N = np.ones(len(loss_N))
    center = float(np.log(size_N).mean())
    logs_N = np.log(size_N) - center

    best = _search(logs_N, experts_N, log_N, ones_N)

    def solved(weight_N: Array) -> Array:
        start, most = _polished(best, logs_N, experts_N, log_N, weight_N)
        return _parameters(logs_N, experts_N, log_N, weight_N, start, most, center)

    return fit_separable(
        RoutedLaw,
        (size_N, experts_N),
        loss_N,
        settings,
        solved,
        residual="log",
        searched=GRID * GRID,
        labels=labels,
        warnings=_flat(logs_N, experts_N, log_N, best[1]),
    )


def flat_range(logs_N: Array, experts_N: Array, log_N: Array) -> tuple[float, float]:
    """The least and the most E_max whose error is within 1% of the best, E_start chosen for each.

    Args:
        logs_N: log sizes.
        experts_N: numbers of experts.
        log_N: log losses.
    """
    ones_N = np.ones(len(log_N))
    grid, starts = np.geomspace(*MAX_RANGE, 120), np.geomspace(*START_RANGE, 60)
    start_S, most_S = np.tile(starts, len(grid)), np.repeat(grid, len(starts))
    squares = _squares(logs_N, experts_N, log_N, ones_N, start_S, most_S)
    by_most = squares.reshape(len(grid), -1).min(axis=1)
    good = grid[by_most <= by_most.min() * FLAT**2]
    return float(good.min()), float(good.max())


def _flat(logs_N: Array, experts_N: Array, log_N: Array, most: float) -> tuple[FitWarning, ...]:
    low, high = flat_range(logs_N, experts_N, log_N)
    low, high = min(low, most), max(high, most)
    if high < WIDE * low:
        return ()
    sentence = (
        f"every E_max from {low:.3g} to {high:.3g} fits within {FLAT - 1:.0%} of the best error "
        f"({most:.3g}): read the forecasts, not that parameter"
    )
    return (FitWarning(status=FitStatus.ILL_CONDITIONED.name, sentence=sentence),)


def _parameters(
    logs_N: Array,
    experts_N: Array,
    log_N: Array,
    weight_N: Array,
    start: float,
    most: float,
    center: float,
) -> Array:
    columns = _columns(logs_N, experts_N, np.array([start]), np.array([most]))[0]
    root_N = np.sqrt(weight_N)
    (d, a, b, c), *_ = np.linalg.lstsq(columns * root_N[:, None], log_N * root_N, rcond=None)
    # From sizes centred at exp(center) to plain ones.
    return np.array([a, b - c * center, c, d - a * center, start, most])


def _polished(
    begin: tuple[float, float], logs_N: Array, experts_N: Array, log_N: Array, weight_N: Array
) -> tuple[float, float]:
    """From (E_start, E_max) to the bottom of the valley, the coefficients solved on the way."""
    root_N = np.sqrt(weight_N)

    def residuals(log_S: Array) -> Array:
        columns = _columns(logs_N, experts_N, np.exp(log_S[:1]), np.exp(log_S[1:]))[0]
        rows = columns * root_N[:, None]
        solved, *_ = np.linalg.lstsq(rows, log_N * root_N, rcond=None)
        return np.asarray(rows @ solved - log_N * root_N)

    low = np.log([START_RANGE[0], MAX_RANGE[0]])
    high = np.log([START_RANGE[1], MAX_RANGE[1]])
    inside = np.clip(np.log(begin), low + 1e-9, high - 1e-9)
    found = least_squares(residuals, inside, bounds=(low, high), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    start, most = map(float, np.exp(found.x))
    return start, most


def _search(logs_N: Array, experts_N: Array, log_N: Array, weight_N: Array) -> tuple[float, float]:
    """E_start and E_max of least squares, on a grid that closes in."""
    low = np.log([START_RANGE[0], MAX_RANGE[0]])
    high = np.log([START_RANGE[1], MAX_RANGE[1]])
    floor, roof = low, high
    for step in range(REFINEMENTS):
        count = GRID if step == 0 else 9
        axes = [np.linspace(low[i], high[i], count) for i in (0, 1)]
        start_S, most_S = (axis.ravel() for axis in np.exp(np.meshgrid(*axes)))
        squares_S = _squares(logs_N, experts_N, log_N, weight_N, start_S, most_S)
        at = int(squares_S.argmin())
        best = np.log([start_S[at], most_S[at]])
        reach = (high - low) / (count - 1) * 1.5
        low, high = np.maximum(best - reach, floor), np.minimum(best + reach, roof)
    start, most = map(float, np.exp(best))
    return start, most


def _squares(
    logs_N: Array, experts_N: Array, log_N: Array, weight_N: Array, start_S: Array, most_S: Array
) -> Array:
    """Weighted sum of squares with the four coefficients solved, at each (E_start, E_max)."""
    columns_SNK = _columns(logs_N, experts_N, start_S, most_S)
    weighted_SNK = columns_SNK * weight_N[:, None]
    gram_SKK = weighted_SNK.transpose(0, 2, 1) @ columns_SNK
    right_SK = weighted_SNK.transpose(0, 2, 1) @ log_N
    gram_SKK += 1e-12 * np.trace(gram_SKK, axis1=1, axis2=2)[:, None, None] * np.eye(4)
    solved_SK = np.linalg.solve(gram_SKK, right_SK[..., None])[..., 0]
    residual_SN = log_N - (columns_SNK @ solved_SK[..., None])[..., 0]
    return np.asarray((weight_N * residual_SN**2).sum(axis=1))


def _columns(logs_N: Array, experts_N: Array, start_S: Array, most_S: Array) -> Array:
    """1, ln N, ln Ê and their product, [S, N, 4]."""
    log_SN = np.log(saturated(experts_N, start_S[:, None], most_S[:, None]))
    size_SN = np.broadcast_to(logs_N, log_SN.shape)
    return np.stack([np.ones_like(log_SN), size_SN, log_SN, size_SN * log_SN], axis=-1)
