"""A fit with its repeated seeds weighed (:mod:`analysis.seed_weights`), and its bootstrap.

What the law misses cells by is told from what seeds do by :mod:`analysis.lack_of_fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.bootstrap import replicate
from analysis.descent import minimise
from analysis.lack_of_fit import lack_of_fit
from analysis.laws import Array
from analysis.seed_weights import Weighting
from analysis.solving import Solved

CELLS_BOOTSTRAP = "cells drawn with replacement, percentiles stretched by Student's quantile"


def weigh(solved: Solved, values: Array, cells: Sequence[str]) -> tuple[Solved, Weighting | None]:
    """The optimum again with repeated seeds weighed; unchanged where all runs count alike.

    Args:
        solved: with every run counted alike.
        values: what was measured, [N].
        cells: of the runs, [N].
    """
    if not (solved.weight_N == 1).all():  # another residual than logs
        return solved, None
    _, cell_N, count_C = np.unique(np.asarray(cells), return_inverse=True, return_counts=True)
    weighting = lack_of_fit(solved.residual_N, cell_N, solved.form.logsum.num_parameters)
    if weighting is None or weighting.even:
        return solved, weighting
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
