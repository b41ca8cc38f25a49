"""How far a law's form may be off beyond the points it was fitted to.

No law is exact, and a fit cannot see by how much: on published tables intervals without anything
for the form held three runs in four where they promised nine in ten. Every forecast of L(N, D),
and of laws like it, is therefore widened beyond its points by what those tables lacked
(:func:`form_allowance`).

Where a ladder's own misses show its law to be wrong, they say more (:class:`Drift`). Bootstrap and
noise tell how far a forecast may lie from the law's best curve, not from the truth: when the local
exponents still change along the ladder, every replicate is wrong in the same way. What is known
then is how fast the law went wrong when the largest budgets were left out. A local exponent that
wanders like a random walk puts the loss off by rate · distance^1.5, the distance in e-folds of
compute beyond the points fitted. The forecast's interval takes the worst cut's rate on, with
Student's quantile for the few cuts there are, towards the side on which the measured losses lay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import Array

GROWTH = 1.5
"""Power of the distance with which a wandering exponent's error grows. On sweeps with a bend at
their upper end 1 covered nothing and 2 gave intervals that hold any loss (LOG.md)."""
FORM_RATE = 0.0065
"""What 90 % intervals lacked on 21 published tables one e-fold beyond their points, in log-loss:
with it in quadrature 89 % of runs lay inside, the rate taken from other publishers each time, and
77 % without (`benchmarks/published_allowance.py`)."""
FORM_LEVEL = 0.9
FORM_FURTHEST = 500.0
"""Times the largest compute fitted to which those tables' runs went."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How fast forecasts beyond the points went wrong."""

    rate: float
    """log(forecast / measured) one e-fold of compute beyond the points, at the worst cut."""
    cuts: int
    """Hold-outs the rate rests on; its degrees of freedom."""
    side: Literal["below", "above", "both"]
    """Where the measured losses lay, seen from their forecasts."""

    def allowance(self, compute_ratio: ArrayLike, level: float) -> tuple[Array, Array]:
        """What to add below and above, in log-loss, at so many times the largest compute."""
        from scipy.special import stdtrit  # here: a status reads records and can't spare it

        distance = np.log(np.maximum(np.asarray(compute_ratio, dtype=float), 1.0))
        reach = float(stdtrit(self.cuts, (1 + level) / 2)) * self.rate * distance**GROWTH
        nothing = np.zeros_like(reach)
        return (
            nothing if self.side == "above" else reach,
            nothing if self.side == "below" else reach,
        )


def form_allowance(compute_ratio: ArrayLike, level: float, rate: float = FORM_RATE) -> Array:
    """What the form of a law is worth at so many times the largest compute: a log-loss to either
    side, to be added in quadrature, 0 within the points."""
    from scipy.special import ndtri  # here, as above

    distance = np.log(np.maximum(np.asarray(compute_ratio, dtype=float), 1.0))
    at_level = float(ndtri((1 + level) / 2) / ndtri((1 + FORM_LEVEL) / 2))
    return np.asarray(at_level * rate * distance**GROWTH)
