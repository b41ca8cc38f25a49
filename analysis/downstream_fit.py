"""The downstream law fitted: linear at a given gamma, so the search is one-dimensional.

Errors of a task, or a mean over tasks, are fitted as they are, not by their logs, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from analysis.downstream import GAMMA_RANGE, DownstreamLaw
from analysis.laws import Array
from analysis.results import Fit
from analysis.separable import fit_separable
from analysis.settings import FitSettings
from model.config import require

SEARCH = 200


def fit_downstream(
    loss_N: Array,
    error_N: Array,
    settings: FitSettings | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> Fit:
    """Least squares of the errors against the losses.

    Raises:
        FitError: three points or fewer.
        ConfigError: errors that are no shares.
    """
    require(
        float(np.max(error_N)) <= 1.0,
        f"errors are shares of wrong answers, at most 1; got {float(np.max(error_N)):g}",
    )
    return fit_separable(
        DownstreamLaw,
        (loss_N,),
        error_N,
        settings or FitSettings(),
        lambda weight_N: solve_downstream(loss_N, error_N, weight_N),
        residual="plain",
        searched=SEARCH,
        labels=labels,
    )


def solve_downstream(loss_N: Array, error_N: Array, weight_N: Array) -> Array:
    """(epsilon, k, gamma) of weighted least squares."""
    root_N = np.sqrt(weight_N)

    def solved(log_gamma: float) -> tuple[float, Array]:
        # exp(-gamma·(L - mean)): the scale goes into k afterwards.
        rows = np.stack([np.ones_like(loss_N), -np.exp(-np.exp(log_gamma) * centred_N)], axis=1)
        found, *_ = np.linalg.lstsq(rows * root_N[:, None], error_N * root_N, rcond=None)
        return float((weight_N * (error_N - rows @ found) ** 2).sum()), found

    middle = float(loss_N.mean())
    centred_N = loss_N - middle
    grid = np.log(np.geomspace(*GAMMA_RANGE, SEARCH))
    at = int(np.argmin([solved(value)[0] for value in grid]))
    ends = (grid[max(at - 1, 0)], grid[min(at + 1, SEARCH - 1)])
    best = minimize_scalar(
        lambda value: solved(value)[0], bounds=ends, method="bounded", options={"xatol": 1e-12}
    )
    gamma = float(np.exp(best.x))
    epsilon, k = solved(float(best.x))[1]
    return np.array([epsilon, k * np.exp(gamma * middle), gamma])
