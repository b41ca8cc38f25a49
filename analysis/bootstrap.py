"""The bootstrap over runs, and intervals from its replicates.

Runs are drawn with replacement (repeated seeds are runs like any other), the law is fitted to each
draw, and an interval lies between two quantiles of what came out. On draws from known surfaces this
covers the truth where three alternatives fall short; the figures stand in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analysis.catalogue import AnyLaw, law_range
from analysis.descent import minimise
from analysis.laws import Array
from analysis.logsum import BLOCK_ELEMENTS
from analysis.results import Interval, stretched
from analysis.ridge import beginnings
from analysis.solving import Solved

HELD_ELEMENTS = 4_000_000
"""Draws times runs held at once, 32 MB: 100,000 runs and 1,000 draws would be 800."""
RUNS_BOOTSTRAP = "runs drawn with replacement, percentiles stretched by Student's quantile"


def resample_runs(num_points: int, replicates: int, seed: int) -> Array:
    """How often each run was drawn, [replicates, num_points]."""
    return _drawn(np.random.default_rng(seed), num_points, replicates)


def replicate(
    solved: Solved,
    log_loss_N: Array,
    replicates: int,
    seed: int,
    unit_N: NDArray[np.intp] | None = None,
) -> Array:
    """The law fitted to every draw, from the optimum (or the optima, one after the other, where the
    points leave a direction free): the parameters [R, P].

    Args:
        solved: the fit to all runs.
        log_loss_N: what was measured.
        replicates: how many draws.
        seed: of the draws.
        unit_N: what is drawn, numbered from 0, by run; by default the runs themselves.
    """
    num_points = len(log_loss_N)
    num_units = num_points if unit_N is None else int(unit_N.max()) + 1
    rng = np.random.default_rng(seed)
    begin_RP = np.resize(beginnings(solved, log_loss_N), (replicates, len(solved.theta_P)))
    parts = []
    for start_RP in _held(begin_RP, num_points):
        counts_RN = _drawn(rng, num_units, len(start_RP))
        if unit_N is not None:
            counts_RN = counts_RN[:, unit_N]
        weights_RN = counts_RN * solved.weight_N
        found = minimise(solved.form.logsum, start_RP, log_loss_N, weights_RN, solved.loss)
        parts.append(found.theta_BP)
    return solved.form.decode(np.concatenate(parts))


def replicate_seeds(solved: Solved, noise_sd: float, replicates: int, seed: int) -> Array:
    """The law fitted again as if every run had had another seed: the parameters [R, P].

    The runs stay where they are and their losses are drawn about the law with the spread that
    repeated seeds have. What this leaves out, the bootstrap over runs has: which runs there are,
    and that the law misses them by more than seeds do.
    """
    rng = np.random.default_rng(seed)
    log_N = solved.form.logsum.log_values(solved.theta_P[None])[0]
    begin_RP = np.resize(beginnings(solved, log_N), (replicates, len(solved.theta_P)))
    parts = []
    for start_RP in _held(begin_RP, len(log_N)):
        log_RN = log_N + noise_sd * rng.standard_normal((len(start_RP), len(log_N)))
        found = minimise(solved.form.logsum, start_RP, log_RN, solved.weight_N, solved.loss)
        parts.append(found.theta_BP)
    return solved.form.decode(np.concatenate(parts))


def _held(begin_RP: Array, num_points: int) -> Iterator[Array]:
    """Where the draws begin, those that are held at once part by part.

    Whole blocks of the descent, so that no digit hangs on the parts.
    """
    block = max(1, BLOCK_ELEMENTS // num_points)
    most = block * max(1, HELD_ELEMENTS // (block * num_points))
    for first in range(0, len(begin_RP), most):
        yield begin_RP[first : first + most]


def intervals(
    law: AnyLaw, replicates_RP: Array, level: float, degrees_of_freedom: float
) -> dict[str, Interval]:
    """Each parameter of ``law`` with the central ``level`` of its replicates, stretched, within
    what the law allows."""
    tail = (1 - level) / 2
    found = {}
    for name, value, column_R in zip(law.PARAMETERS, law.parameters, replicates_RP.T, strict=True):
        in_log = name not in law.EXPONENTS and value > 0 and (column_R > 0).all()
        scale_R, center = (np.log(column_R), np.log(value)) if in_log else (column_R, value)
        low, high = center + stretched(
            np.quantile(scale_R - center, [tail, 1 - tail]), degrees_of_freedom, level
        )
        low, high = (np.exp(low), np.exp(high)) if in_log else (low, high)
        least, most = law_range(law, name)  # stretching can leave it; no replicate did
        found[name] = Interval(
            value=float(value),
            low=float(min(max(low, least), value)),
            high=float(max(min(high, most), value)),
            level=level,
        )
    return found


def _drawn(rng: np.random.Generator, num_units: int, replicates: int) -> Array:
    equal = np.full(num_units, 1 / num_units)
    return rng.multinomial(num_units, equal, size=replicates).astype(float)
