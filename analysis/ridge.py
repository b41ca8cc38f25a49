"""Where the points leave a direction of the parameters wholly free: optima all along it.

Two values of a variable say nothing of its exponent beside the irreducible loss: E, a coefficient
and an exponent are three numbers for two. The descent stops somewhere on that ridge, by where it
began. Replicates that all began there would stay there, and their intervals would say that it is
known (of two token counts a forecast at ten times the compute covered 0.29 of 0.9; LOG.md). So they
begin all along the ridge.

Shapes: S exponent vectors, K beginnings, N points, P parameters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.descent import minimise
from analysis.health import scaled_jacobian
from analysis.laws import Array
from analysis.projection import starts
from analysis.solving import Solved

FREE = 1e-9
"""Singular value over the largest, columns scaled to length one, below which nothing is known."""
TRIED = 200
AS_GOOD = 1e-3
"""Share of the objective by which another point of the ridge may be worse: rounding, E >= 0."""


def beginnings(solved: Solved, log_loss_N: Array) -> Array:
    """Optima along the free directions [K, P], the reported one first; it alone where none is."""
    form, best_1P = solved.form, solved.theta_P[None]
    exponents = [form.parameters.index(name) for name in form.exponent_names]
    free_P = _free(solved)
    columns = [place for place, index in enumerate(exponents) if free_P[index]]
    if not columns:
        return best_1P
    tried_SQ, _ = form.exponent_starts(TRIED)
    exponents_SQ = np.repeat(best_1P[:, exponents], TRIED, axis=0)
    exponents_SQ[:, columns] = tried_SQ[:, columns]
    begin_SP, _ = starts(form.logsum, log_loss_N, solved.weight_N, solved.loss, exponents_SQ)
    found = minimise(form.logsum, begin_SP, log_loss_N, solved.weight_N, solved.loss)
    value = float((solved.weight_N * solved.loss.rho(solved.residual_N)).sum())
    return np.concatenate(
        [best_1P, found.theta_BP[found.objective_B <= value * (1 + AS_GOOD) + 1e-20]]
    )


def _free(solved: Solved) -> NDArray[np.bool_]:
    """Which parameters the directions without information move, [P]."""
    moved_P = np.zeros(len(solved.theta_P), dtype=bool)
    _, singular, right = np.linalg.svd(scaled_jacobian(solved.form, solved.theta_P))
    rank = int((singular > FREE * singular[0]).sum())
    moved_P[~solved.form.held_P] = (np.abs(right[rank:]) > FREE**0.5).any(axis=0)
    return moved_P
