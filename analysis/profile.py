"""Profile likelihood: how far one parameter can go before the fit is clearly worse.

The other parameters follow it along the ridge, so the interval holds where a bootstrap's
percentiles, or a covariance, cut a curved ridge short. For squares it is the usual F test; for a
robust loss the objective's rise is scaled by what its residuals say of the loss (Ronchetti's
likelihood-ratio test for M-estimators; Heritier & Ronchetti, JASA 1994).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from analysis.descent import minimise
from analysis.laws import Array
from analysis.logsum import LogSum
from analysis.results import Interval
from analysis.solving import Solved

HALVINGS = 14
FIRST_REACH = 0.05
MOST_DOUBLINGS = 12


def profile_intervals(
    solved: Solved, values: Array, level: float, names: Sequence[str] | None = None
) -> dict[str, Interval]:
    """The interval of every exponent, and of a coefficient that stands alone in its term (E).

    A coefficient that multiplies a power is left out: it means the term's size at one unit of its
    variable, far outside the data, and only says again what its exponent does.
    """
    law = solved.form.logsum
    alone = {columns[0] for columns in law.columns if len(columns) == 1}
    exponents = {solved.form.parameters.index(n) for n in solved.form.exponent_names}
    found = {}
    for index in sorted(alone | exponents):
        if names is not None and solved.form.parameters[index] not in names:
            continue
        low, high = (_end(solved, np.log(values), index, side, level) for side in (-1.0, 1.0))
        ends = np.repeat(solved.theta_P[None], 3, axis=0)
        ends[0, index], ends[2, index] = low, high
        decoded = solved.form.decode(ends)[:, index] if index in alone else ends[:, index]
        found[solved.form.parameters[index]] = Interval(
            value=float(decoded[1]), low=float(decoded[0]), high=float(decoded[2]), level=level
        )
    return found


def _end(solved: Solved, log_N: Array, index: int, side: float, level: float) -> float:
    """Where the objective's rise reaches the critical value on one side, or the bound."""
    law = solved.form.logsum
    bound = float(law.lower_P[index] if side < 0 else law.upper_P[index])
    here = float(solved.theta_P[index])
    inside, reach, theta_P = here, FIRST_REACH, solved.theta_P
    outside: float | None = None
    for _ in range(MOST_DOUBLINGS):
        at = here + side * reach
        if (at - bound) * side >= 0:
            at = bound
        theta_P, rise = _rise(solved, log_N, index, at, theta_P)
        if rise > _critical(solved, level):
            outside = at
            break
        inside = at
        if at == bound:
            return bound
        reach *= 2
    if outside is None:
        return inside
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        _, rise = _rise(solved, log_N, index, middle, theta_P)
        inside, outside = (inside, middle) if rise > _critical(solved, level) else (middle, outside)
    return (inside + outside) / 2


def _rise(
    solved: Solved, log_N: Array, index: int, at: float, start_P: Array
) -> tuple[Array, float]:
    """The best parameters with one held, and how far the objective rose."""
    law = solved.form.logsum
    lower_P, upper_P = law.lower_P.copy(), law.upper_P.copy()
    lower_P[index] = upper_P[index] = at
    held = LogSum(law.terms, law.columns, lower_P, upper_P)
    starts_BP = np.stack([start_P, solved.theta_P])
    starts_BP[:, index] = at
    found = minimise(held, starts_BP, log_N, solved.weight_N, solved.loss)
    best = int(found.objective_B.argmin())
    before = float((solved.weight_N * solved.loss.rho(solved.residual_N)).sum())
    return found.theta_BP[best], float(found.objective_B[best]) - before


def _critical(solved: Solved, level: float) -> float:
    """The rise of the objective that one parameter may cost at ``level``."""
    weight_N, num_points = solved.weight_N, len(solved.residual_N)
    degrees = num_points - solved.form.logsum.num_parameters
    # A fit's residuals are smaller than the noise by the parameters' degrees of freedom.
    residual_N = solved.residual_N * np.sqrt(num_points / degrees)
    inner = float((weight_N * (np.abs(residual_N) <= solved.loss.delta)).mean())
    spread = float(((weight_N * solved.loss.slope(residual_N)) ** 2).mean())
    quantile = float(stdtrit(degrees, (1 + level) / 2)) ** 2
    return quantile * spread / (2 * max(inner, 1 / num_points))
