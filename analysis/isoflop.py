"""IsoFLOP optima: the best size of each compute budget, from a parabola through its runs.

Hoffmann et al. (arXiv:2203.15556, approach 2). Its optimum is biased wherever the true curve is not
a parabola, even without noise (Czech et al., arXiv:2603.22339), so it stands here to be compared
with the surface's, with a status a budget: a parabola that opens downward has no optimum, one whose
minimum lies outside the sizes tried gives a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.fitting import fit_power_law
from analysis.laws import Array
from analysis.points import Points
from analysis.results import Fit, FitError
from analysis.settings import FitSettings

FEWEST_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class IsoflopOptimum:
    """One budget's best size."""

    flops: float
    """Mean of the budget's runs."""
    size: float
    """At the parabola's minimum, or the end of the sizes tried that it points to."""
    loss: float
    """The parabola at ``size``."""
    status: Literal["inside", "at_edge", "opens_downward"]
    num_runs: int
    best_size: float
    """Size of the run with the lowest loss: what needs no parabola."""
    best_tokens: float
    """Its tokens."""
    best_loss: float


def isoflop_optima(points: Points) -> tuple[IsoflopOptimum, ...]:
    """One optimum for each budget of three sizes or more, smallest budget first."""
    size, loss, flops = (points.array(name) for name in ("size", "loss", "flops"))
    ranks = np.asarray(points.budget)
    found = []
    for rank in sorted(set(points.budget)):
        rows = np.flatnonzero(ranks == rank)
        if len(np.unique(size[rows])) >= FEWEST_SIZES:
            tokens = points.array("tokens")[rows]
            found.append(_optimum(size[rows], tokens, loss[rows], float(flops[rows].mean())))
    return tuple(found)


def isoflop_laws(
    optima: Sequence[IsoflopOptimum],
    flops_per_size_token: float,
    settings: FitSettings | None = None,
    *,
    by: Literal["parabola", "lowest_run"] = "parabola",
) -> tuple[Fit, Fit]:
    """N*(C) and D*(C) as power laws through the optima that lie inside.

    Raises:
        FitError: fewer than three of them.
    """
    inside = [o for o in optima if o.status == "inside" or by == "lowest_run"]
    if len(inside) < FEWEST_SIZES:
        outside = ", ".join(f"{o.flops:.2g}: {o.status}" for o in optima if o.status != "inside")
        raise FitError(
            f"{len(inside)} of {len(optima)} budgets have their optimum inside the sizes tried, "
            f"three are needed ({outside or 'too few budgets'})"
        )
    flops = [optimum.flops for optimum in inside]
    if by == "parabola":
        sizes = [optimum.size for optimum in inside]
        tokens = [c / (flops_per_size_token * n) for c, n in zip(flops, sizes, strict=True)]
    else:
        sizes = [optimum.best_size for optimum in inside]
        tokens = [optimum.best_tokens for optimum in inside]
    return (
        fit_power_law(flops, sizes, settings, name="optimal size"),
        fit_power_law(flops, tokens, settings, name="optimal tokens"),
    )


def isoflop_loss(
    optima: Sequence[IsoflopOptimum],
    irreducible: float,
    settings: FitSettings | None = None,
) -> Fit:
    """(L - E) of the parabolas' minima as a power of compute, at a given irreducible loss E.

    Raises:
        FitError: fewer than three optima inside the sizes tried, or one that is not above E.
    """
    inside = [optimum for optimum in optima if optimum.status == "inside"]
    if len(inside) < FEWEST_SIZES:
        raise FitError(f"{len(inside)} of {len(optima)} budgets have their optimum inside")
    left = [optimum.loss - irreducible for optimum in inside]
    if min(left) <= 0:
        raise FitError(f"a parabola's minimum lies below the irreducible loss {irreducible:g}")
    flops = [optimum.flops for optimum in inside]
    name = f"loss - {irreducible:g}" if irreducible else "loss"
    return fit_power_law(flops, left, settings, name=name)


def _optimum(size: Array, tokens: Array, loss: Array, flops: float) -> IsoflopOptimum:
    log_size = np.log(size)
    middle = log_size.mean()
    curvature, slope, height = np.polyfit(log_size - middle, loss, 2)
    lowest = int(loss.argmin())
    low, high = log_size.min() - middle, log_size.max() - middle
    if curvature <= 0:
        at = (
            low
            if np.polyval((curvature, slope, height), low)
            < np.polyval((curvature, slope, height), high)
            else high
        )
        status: Literal["inside", "at_edge", "opens_downward"] = "opens_downward"
    else:
        vertex = -slope / (2 * curvature)
        at = float(np.clip(vertex, low, high))
        status = "inside" if low < vertex < high else "at_edge"
    return IsoflopOptimum(
        flops=flops,
        size=float(np.exp(at + middle)),
        loss=float(np.polyval((curvature, slope, height), at)),
        status=status,
        num_runs=len(size),
        best_size=float(size[lowest]),
        best_tokens=float(tokens[lowest]),
        best_loss=float(loss[lowest]),
    )
