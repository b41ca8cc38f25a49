"""Efficiency leverage measured: the compute a dense ladder needs for the loss of a mixture's.

EL = C_dense / C_moe at equal loss (arXiv:2507.17702, section 3). Both sides are frontiers fitted to
their own runs, so the leverage carries both uncertainties; where the mixture's loss lies below what
the dense law can ever reach, there is no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.laws import Array, SaturatingPowerLaw
from analysis.moe_laws import EfficiencyLeverage
from analysis.results import Fit, FitError, Interval, stretched
from model.config import require

MOST_UNREACHED = 0.5
START_RANGE = (1e-4, 1.0)
SEARCH = 400
REFINEMENTS = 6


@dataclass(frozen=True, kw_only=True)
class MeasuredLeverage:
    """Leverage at one compute of the mixture."""

    flops: float
    leverage: Interval
    unreached_frac: float
    """Share of replicates whose dense law never reaches the mixture's loss; they count as the
    interval's open upper end."""


def measured_leverage(moe: Fit, dense: Fit, flops: float, level: float = 0.9) -> MeasuredLeverage:
    """C_dense / C_moe at the loss the mixture reaches with ``flops``.

    Args:
        moe: L(C) of the mixtures, see :func:`analysis.fitting.frontier_fit`.
        dense: L(C) of the dense baselines under the same protocol.
        flops: C_moe.
        level: of the interval.

    Raises:
        FitError: the dense law, or half of its replicates, never reach that loss.
    """
    require(
        isinstance(moe.law, SaturatingPowerLaw) and isinstance(dense.law, SaturatingPowerLaw),
        "leverage compares two laws L(C); use frontier_fit on each surface",
    )
    log_value = float(_log_dense_flops(moe.law.parameters, dense.law.parameters, flops))
    count = min(len(moe.replicates), len(dense.replicates))
    log_R = _log_dense_flops(
        np.asarray(moe.replicates)[:count], np.asarray(dense.replicates)[:count], flops
    )
    reached_R = np.isfinite(log_R)
    unreached = float(1 - reached_R.mean())
    if not np.isfinite(log_value) or unreached > MOST_UNREACHED:
        raise FitError(
            f"the mixture's loss at {flops:.3g} FLOPs is never reached by the dense law "
            f"({unreached:.0%} of its replicates): no leverage can be measured there"
        )
    value = np.exp(log_value) / flops
    deviation_R = np.where(reached_R, log_R, np.inf) - log_value
    tail = (1 - level) / 2
    low, high = np.quantile(deviation_R, [tail, 1 - tail], method="nearest")
    degrees = min(moe.noise_df, dense.noise_df)
    ends = [float(stretched(end, degrees, level)) for end in (low, min(high, 100.0))]
    return MeasuredLeverage(
        flops=flops,
        leverage=Interval(
            value=float(value),
            low=float(value * np.exp(min(ends[0], 0.0))),
            high=float(value * np.exp(max(ends[1], 0.0))),
            level=level,
        ),
        unreached_frac=unreached,
    )


def fit_leverage(
    activation: Sequence[float],
    granularity: Sequence[float],
    flops: Sequence[float],
    leverage: Sequence[float],
) -> EfficiencyLeverage:
    """EL(A, G, C) through measured leverages, least squares in log EL.

    At a given A_start the law is linear in its four other constants, so the search is
    one-dimensional. A_max, which the published fit left at 5e16, is held there: without effect.

    Raises:
        FitError: fewer than six measurements.
    """
    active, fine = np.asarray(activation, dtype=float), np.log2(np.asarray(granularity))
    log_c, log_el = np.log10(np.asarray(flops)), np.log(np.asarray(leverage))
    if len(log_el) < 6:
        raise FitError(f"{len(log_el)} leverages for the 5 constants of EL(A, G, C); 6 are needed")
    shape = np.stack([np.ones_like(log_c), log_c, fine**2, fine], axis=1)

    def solve(start: float) -> tuple[float, Array]:
        rows = shape * np.log(active + start)[:, None]
        solved, *_ = np.linalg.lstsq(rows, log_el, rcond=None)
        return float(((log_el - rows @ solved) ** 2).sum()), solved

    low, high = np.log(START_RANGE)
    for _ in range(REFINEMENTS):
        grid = np.linspace(low, high, SEARCH)
        best = int(np.argmin([solve(float(np.exp(at)))[0] for at in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, SEARCH - 1)]
    start = float(np.exp(grid[best]))
    a, d, gamma, beta = map(float, solve(start)[1])
    return EfficiencyLeverage(a=a, d=d, gamma=gamma, beta=beta, A_start=start)


def _log_dense_flops(moe: Array, dense: Array, flops: float) -> Array:
    """ln C_dense at the mixture's loss; infinite where the dense law never gets there."""
    reached = SaturatingPowerLaw.formula(moe, flops)
    E, a, b = np.moveaxis(np.asarray(dense, dtype=float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_flops = (np.log(a) - np.log(np.maximum(reached - E, 0.0))) / b
    return np.asarray(np.where(a > 0, log_flops, np.inf))
