"""Which loss, at which scale, and how far one new run lies from the law."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from analysis.laws import Array
from analysis.logsum import Loss
from analysis.settings import FitSettings

REFERENCE_DELTA = 1e-3
"""Hoffmann et al. (arXiv:2203.15556) and the replication by Besiroglu et al. (arXiv:2404.10102)."""
EFFICIENT_DELTA = 1.345
"""Huber's delta, in standard deviations, that keeps 95% of the efficiency on normal noise."""
MANY_POINTS_PER_PARAMETER = 20
WINSOR = 3.0
"""Residuals count as at most this many robust standard deviations in the spread of a new run."""


def chosen_loss(
    settings: FitSettings, num_points: int, num_parameters: int
) -> tuple[Loss, str | None]:
    """The loss to begin with, and the rule in words; None if delta waits for the residuals.

    The field's delta of 1e-3 is far below the noise of most runs, so it is least absolute
    deviation in disguise: robust, but it throws away a third of the information when noise is
    normal. With 240 points that is affordable and keeps results comparable; with 20 it is not, and
    the intervals of so rough a loss came out too wide by measurement (they covered 0.97).
    """
    if settings.loss == "lad":
        return Loss(kind="lad", delta=0.0), "absolute values, no delta"
    if settings.loss == "squares":
        return Loss(kind="squares", delta=np.inf), "squares, no delta"
    if settings.huber_delta is not None:
        return Loss(kind="huber", delta=settings.huber_delta), "given"
    begin = Loss(kind="huber", delta=REFERENCE_DELTA)
    many = MANY_POINTS_PER_PARAMETER * num_parameters
    if num_points >= many:
        return begin, f"1e-3, the field's reference, from {many} points on"
    return begin, None


def efficient_loss(residual_N: Array, num_parameters: int) -> tuple[Loss, str]:
    """Huber's loss with the delta that suits the residuals of a first fit."""
    spread = robust_sd(residual_N, num_parameters)
    delta = max(REFERENCE_DELTA, EFFICIENT_DELTA * spread)
    rule = (
        f"{EFFICIENT_DELTA} robust standard deviations of the residuals, at least 1e-3: below "
        f"{MANY_POINTS_PER_PARAMETER * num_parameters} points"
    )
    return Loss(kind="huber", delta=float(delta)), rule


def new_run_spread(residual_N: Array, num_parameters: int) -> tuple[float, float]:
    """Spread of one new run about the law in log-loss, and its degrees of freedom.

    The residuals' standard deviation with the parameters' degrees of freedom taken off. Residuals
    beyond three robust standard deviations count as three, so that an outlier (which the report
    names) does not widen every forecast.
    """
    degrees = len(residual_N) - num_parameters
    most = WINSOR * robust_sd(residual_N, num_parameters)
    kept_N = np.minimum(np.abs(residual_N), most) if most > 0 else np.abs(residual_N)
    return float(np.sqrt((kept_N**2).sum() / degrees)), float(degrees)


def robust_sd(residual_N: Array, num_parameters: int) -> float:
    """Standard deviation from the median absolute residual.

    A robust fit brings about as many residuals to nearly zero as it has parameters; the smallest
    ones are left out of the median (Street, Carroll & Ruppert, 1988).
    """
    ordered_N = np.sort(np.abs(residual_N))[num_parameters - 1 :]
    return float(np.median(ordered_N) / ndtri(0.75))
