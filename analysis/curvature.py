"""Do the residuals bend? A test of a law's form against the next order in its variables.

A law that is too stiff for its points, or whose points lie before the range where it holds, leaves
residuals that curve along log-size or log-tokens: the local exponents still change. The test adds
the square of each log-variable to the law's own directions and asks whether that explains more than
chance (a score test; it needs no second fit).

Of many points it is asked twice, and the more cautious answer holds: once as if all had the same
spread, and once with each point's own residual for its spread (White, Econometrica 1980), which a
few wild points, or noise that grows towards one end, cannot fool. Of few points the second says too
little: on sweeps of 23 it spoke in 1% where 5% were due.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import fdtrc

from analysis.laws import Array
from analysis.robust import MANY_POINTS_PER_PARAMETER, WINSOR, robust_sd
from analysis.solving import Solved

LEAST_VALUES = 3
"""A square needs three values of its variable."""
NEW_DIRECTION = 1e-3
"""A square of which less than this share is left beside the law's own directions says nothing."""
ROUNDING = 1e-9
"""Residuals of noise-free points."""


def bend_chance(solved: Solved, variables: Sequence[Array]) -> float:
    """The chance that residuals of a law of the right form bend as much as these; 1 if untestable.

    Outliers count as three robust standard deviations; parameters at their bounds don't move.
    """
    logsum, theta_P = solved.form.logsum, solved.theta_P
    spread = robust_sd(solved.residual_N, logsum.num_parameters)
    if spread <= ROUNDING:
        return 1.0
    residual_N = np.clip(solved.residual_N, -WINSOR * spread, WINSOR * spread)
    free_P = (theta_P > logsum.lower_P) & (theta_P < logsum.upper_P)
    own_NP, _ = np.linalg.qr(logsum.jacobian(theta_P)[:, free_P])

    def beside_the_law(column_N: Array) -> Array:
        return np.asarray(column_N - own_NP @ (own_NP.T @ column_N))

    squares = []
    for variable_N in variables:
        if len(np.unique(variable_N)) < LEAST_VALUES:
            continue
        log_N = np.log(variable_N)
        square_N = (log_N - log_N.mean()) ** 2
        left_N = beside_the_law(square_N)
        if np.linalg.norm(left_N) > NEW_DIRECTION * np.linalg.norm(square_N):
            squares.append(left_N)
    degrees = len(residual_N) - own_NP.shape[1] - len(squares)
    if not squares or degrees < 1:
        return 1.0
    residual_N = beside_the_law(residual_N)
    bend_NQ, _ = np.linalg.qr(np.stack(squares, axis=1))
    score_Q = bend_NQ.T @ residual_N
    explained = float((score_Q**2).sum())
    left_N = residual_N - bend_NQ @ score_Q
    equal = explained / (float((left_N**2).sum()) / degrees)
    if len(residual_N) >= MANY_POINTS_PER_PARAMETER * logsum.num_parameters:
        own_NQ = bend_NQ * residual_N[:, None]
        own = float(score_Q @ np.linalg.pinv(own_NQ.T @ own_NQ) @ score_Q)
        equal = min(equal, own)
    return float(fdtrc(len(squares), degrees, equal / len(squares)))
