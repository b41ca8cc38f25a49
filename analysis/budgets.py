"""Which runs share a compute budget: what a hold-out leaves out together."""

from __future__ import annotations

import numpy as np

from analysis.laws import Array

SAME_BUDGET = 1.2
"""Neighbouring computes further apart than this factor start a new budget."""
WIDEST_BUDGET = 1.5
"""A group whose ends lie further apart is no budget but a continuum."""


def budget_ranks(flops_N: Array) -> tuple[int, ...]:
    """The rank of each run's compute budget, 0 for the smallest.

    Where the computes fall into groups (fixed budgets, or the diagonals of a ladder of sizes and
    token counts), the groups are the budgets; otherwise (runs at will) the octaves below the
    largest compute are.
    """
    log_N = np.log(flops_N)
    ordered, back = np.unique(log_N, return_inverse=True)
    group = np.concatenate([[0], np.cumsum(np.diff(ordered) > np.log(SAME_BUDGET))])
    widths = [np.ptp(ordered[group == g]) for g in range(group[-1] + 1)]
    if max(widths) > np.log(WIDEST_BUDGET):
        octave = np.floor((ordered[-1] + np.log(SAME_BUDGET) - ordered) / np.log(2))
        _, group = np.unique(-octave, return_inverse=True)
    return tuple(int(rank) for rank in group[back])
