"""The bootstrap over runs, and intervals from its replicates.

Runs are drawn with replacement (repeated seeds are runs like any other), the law is fitted to each
draw, and an interval lies between two quantiles of what came out. On draws from known surfaces this
covers the truth where three alternatives fall short; the figures stand in the tests.
"""

from __future__ import annotations

import numpy as np

from analysis.catalogue import AnyLaw
from analysis.descent import minimise
from analysis.laws import Array
from analysis.results import Interval, stretched
from analysis.solving import Solved

RUNS_BOOTSTRAP = "runs drawn with replacement, percentiles stretched by Student's quantile"


def resample_runs(num_points: int, replicates: int, seed: int) -> Array:
    """How often each run was drawn, [replicates, num_points]."""
    rng = np.random.default_rng(seed)
    equal = np.full(num_points, 1 / num_points)
    return rng.multinomial(num_points, equal, size=replicates).astype(float)


def replicate(solved: Solved, log_loss_N: Array, counts_RN: Array) -> Array:
    """The law fitted to every draw, from the optimum: the parameters [R, P]."""
    start_RP = np.repeat(solved.theta_P[None], len(counts_RN), axis=0)
    weights_RN = counts_RN * solved.weight_N
    found = minimise(solved.form.logsum, start_RP, log_loss_N, weights_RN, solved.loss)
    return solved.form.decode(found.theta_BP)


def replicate_seeds(solved: Solved, noise_sd: float, replicates: int, seed: int) -> Array:
    """The law fitted again as if every run had had another seed: the parameters [R, P].

    The runs stay where they are and their losses are drawn about the law with the spread that
    repeated seeds have. What this leaves out, the bootstrap over runs has: which runs there are,
    and that the law misses them by more than seeds do.
    """
    rng = np.random.default_rng(seed)
    log_N = solved.form.logsum.log_values(solved.theta_P[None])[0]
    log_RN = log_N + noise_sd * rng.standard_normal((replicates, len(log_N)))
    start_RP = np.repeat(solved.theta_P[None], replicates, axis=0)
    found = minimise(solved.form.logsum, start_RP, log_RN, solved.weight_N, solved.loss)
    return solved.form.decode(found.theta_BP)


def intervals(
    law: AnyLaw, replicates_RP: Array, level: float, degrees_of_freedom: float
) -> dict[str, Interval]:
    """Each parameter of ``law`` with the central ``level`` of its replicates, stretched."""
    tail = (1 - level) / 2
    found = {}
    for name, value, column_R in zip(law.PARAMETERS, law.parameters, replicates_RP.T, strict=True):
        in_log = name not in law.EXPONENTS and value > 0 and (column_R > 0).all()
        scale_R, center = (np.log(column_R), np.log(value)) if in_log else (column_R, value)
        low, high = center + stretched(
            np.quantile(scale_R - center, [tail, 1 - tail]), degrees_of_freedom, level
        )
        low, high = (np.exp(low), np.exp(high)) if in_log else (low, high)
        found[name] = Interval(
            value=float(value),
            low=float(min(low, value))
            if name in law.EXPONENTS
            else max(0.0, float(min(low, value))),
            high=float(max(high, value)),
            level=level,
        )
    return found
