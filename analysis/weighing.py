"""A fit with its repeated seeds weighed (:mod:`analysis.seed_weights`), and its bootstrap.

What the law misses cells by is told from what seeds do by the lack-of-fit test (Fisher 1922; Draper
& Smith, Applied Regression Analysis, section 2.1): the cells' means about the law against the runs
about their cell's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.bootstrap import replicate
from analysis.descent import minimise
from analysis.laws import Array
from analysis.noise import pooled
from analysis.robust import WINSOR, robust_sd
from analysis.seed_weights import Weighting
from analysis.solving import Solved

UNLIKELY = 0.1
"""The law is said to miss cells where chance alone would make it seem so less often than this."""
CELLS_BOOTSTRAP = "cells drawn with replacement, percentiles stretched by Student's quantile"


def weigh(solved: Solved, values: Array, cells: Sequence[str]) -> tuple[Solved, Weighting | None]:
    """The optimum again with repeated seeds weighed; unchanged where all runs count alike.

    Args:
        solved: with every run counted alike.
        values: what was measured, [N].
        cells: of the runs, [N].
    """
    weighting = _weighting(solved, cells)
    if weighting is None or weighting.even:
        return solved, weighting
    _, cell_N, count_C = np.unique(np.asarray(cells), return_inverse=True, return_counts=True)
    weight_N = np.array([weighting.of_cell(k) / k for k in count_C.tolist()])[cell_N]
    law, log_N = solved.form.logsum, np.log(values)
    found = minimise(law, solved.theta_P[None], log_N, weight_N, solved.loss)
    again = replace(
        solved,
        theta_P=found.theta_BP[0],
        value=float(found.objective_B[0]),
        steps=solved.steps + int(found.steps_B[0]),
        converged=bool(found.converged_B[0]),
        residual_N=log_N - law.log_values(found.theta_BP)[0],
        weight_N=weight_N,
    )
    return again, weighting


def replicate_cells(
    solved: Solved, log_loss_N: Array, cells: Sequence[str], replicates: int, seed: int
) -> Array:
    """The law fitted to cells drawn with replacement, each with all its runs: parameters [R, P].

    Runs of one cell share what the law misses it by, so they are no draws of their own.
    """
    _, cell_N = np.unique(np.asarray(cells), return_inverse=True)
    return replicate(solved, log_loss_N, replicates, seed, cell_N)


def _weighting(solved: Solved, cells: Sequence[str]) -> Weighting | None:
    """None without repeats, with too few cells to judge by, or for another residual than logs."""
    from scipy.special import fdtrc  # here: a status reads fits and can't spare it

    names, cell_N = np.unique(np.asarray(cells), return_inverse=True)
    num_parameters = solved.form.logsum.num_parameters
    between, within = len(names) - num_parameters, len(cell_N) - len(names)
    if within == 0 or between < 1 or not (solved.weight_N == 1).all():
        return None
    squares, count_C, mean_C = pooled(solved.residual_N, cell_N)
    seeds_sd = float(np.sqrt(squares / within))
    if seeds_sd == 0.0:
        return None
    scaled_C = np.abs(mean_C) * np.sqrt(count_C)
    most = WINSOR * robust_sd(scaled_C, num_parameters)  # an outlier is no misfit of all cells
    lack = float((np.minimum(scaled_C, most) ** 2).sum())
    chance = float(fdtrc(between, within, lack / between / seeds_sd**2))
    misfit = 0.0
    if chance < UNLIKELY:
        excess = lack - between * seeds_sd**2
        misfit = np.sqrt(excess * len(names) / (between * len(cell_N)))
    return Weighting(
        seeds_sd=seeds_sd,
        misfit_sd=float(misfit),
        chance=chance,
        cells=len(names),
        most_seeds=int(count_C.max()),
    )
