"""Judgement by hold-out: fit without the largest budgets, forecast them, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.budgets import SAME_BUDGET
from analysis.drift import GROWTH, Drift
from analysis.laws import Array
from analysis.results import Fit, Prediction, stretched
from analysis.robust import WINSOR

ROUNDING = 1e-9
"""Of the rates on noise-free points."""
LEVEL = 0.9
"""Where Student's quantile is compared with the normal one."""
FAR = 1.6
"""Rates whose root mean square is this many of their standard deviations show a wrong form. On 40
sweeps that follow the law 2 came so far, and 5 with the ones that CURVED names (LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class HeldOutPoint:
    """One point that the fit did not see."""

    label: str
    size: float
    tokens: float
    flops: float
    measured: float
    forecast: Prediction

    @property
    def error(self) -> float:
        """Forecast over measured, minus 1."""
        return self.forecast.value / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies in the forecast's interval."""
        return self.forecast.contains(self.measured)


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """The largest budgets forecast from the rest."""

    budgets: int
    """How many of the largest budgets were left out."""
    points: tuple[HeldOutPoint, ...]
    rate: float
    """log(forecast / measured) one e-fold of compute beyond the points fitted."""
    rate_sd: float
    """Standard deviation of it for a law of the right form: the replicates' and the noise's."""

    @property
    def mean_abs_error(self) -> float:
        """Mean of |forecast over measured - 1|."""
        return sum(abs(point.error) for point in self.points) / len(self.points)

    @property
    def num_inside(self) -> int:
        """How many measured losses lie in their intervals."""
        return sum(point.inside for point in self.points)


def miss_rate(fit: Fit, left_out: Sequence[Array], measured: Array) -> tuple[float, float]:
    """How fast ``fit`` goes wrong beyond its points, and what that would vary by if it were right.

    Least squares through the origin of log(forecast / measured) on distance^GROWTH, the distance
    being log(compute / largest fitted).

    Args:
        fit: of the smaller budgets.
        left_out: the law's variables at the held-out points.
        measured: what was measured there.
    """
    compute: Callable[..., Array] = fit.law.compute
    formula: Callable[..., Array] = fit.law.formula
    # Where size times tokens misses the table's compute, a held-out point may lie no further out.
    ratio = np.maximum(compute(*left_out) / fit.largest_compute, SAME_BUDGET)
    distance = np.log(ratio) ** GROWTH
    share = distance / (distance**2).sum()
    forecast = np.log(formula(fit.law.parameters, *left_out))
    replicates = np.asarray(fit.replicates)[:, None, :]
    spread = (np.log(formula(replicates, *left_out)) - forecast) @ share
    sds = stretched(
        np.array([spread.std(), fit.noise_sd * np.linalg.norm(share)]), fit.noise_df, LEVEL
    )
    most = WINSOR * fit.noise_sd  # one outlier at the top is no drift
    miss = np.clip(forecast - np.log(measured), -most, most)
    return float(miss @ share), float(np.linalg.norm(sds))


def drift_of(holdouts: Sequence[Holdout], *, curved: bool) -> Drift | None:
    """The drift of a law that ``holdouts`` or its residuals show to be wrong; None for a sound one.

    Args:
        holdouts: one for each number of budgets left out.
        curved: whether the residuals of the whole fit bend.
    """
    rates = [holdout.rate for holdout in holdouts]
    if not rates:
        return None
    scores = [holdout.rate / max(holdout.rate_sd, ROUNDING) for holdout in holdouts]
    if not curved and float(np.mean(np.square(scores))) <= FAR**2:
        return None
    side: Literal["below", "above", "both"] = "both"
    if min(rates) > 0:
        side = "below"
    elif max(rates) < 0:
        side = "above"
    return Drift(rate=max(map(abs, rates)), cuts=len(rates), side=side)
