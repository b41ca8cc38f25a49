"""A trend through cells, each the mean of its seeds.

Runs of one cell share what is the cell's own, so they are no evidence of their own: with every run
counted, 90% intervals of a trend held the truth 0.71 to 0.82 times at two and three seeds a cell,
and 0.60 to 0.64 at five, where cells differ as much as seeds do. A line through the cells' means,
with the cells' degrees of freedom, holds it 0.90 times whatever the cells have of their own, and is
wider where they have nothing: by 13% at six cells of two seeds, 6% at nine, 39% at four (LOG.md,
2026-11-27).

Where cells have unequally many seeds k, a mean weighs 1 / (1/2 + 1/(2k)), as if half of a run's
variance were its cell's: between 1, right where all of it is, and k. That needs no estimate, and
held the truth 0.88 to 0.94 times; weights by the estimated share 0.86 to 0.92, and 0.84 at worst
with that share at zero unless the test speaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.lack_of_fit import lack_of_fit
from analysis.laws import Array
from analysis.line import Line
from analysis.noise import cell_means
from analysis.seed_weights import Weighting

LEAST_CELLS = 4
"""A line and two degrees of freedom; with fewer every run counts, and the seeds are the noise."""


@dataclass(frozen=True, kw_only=True)
class CellLine:
    """The line, and what it was drawn through."""

    line: Line
    unit_N: NDArray[np.intp]
    """Which of the line's points each run went into."""
    weight_U: Array
    """Of the line's points."""
    weighting: Weighting | None
    """What cells have of their own; None where no cell was repeated, or too few to tell."""
    run_sd: float
    """Spread of one run about the line."""

    @property
    def by_cells(self) -> bool:
        """Whether its points are cells; else runs."""
        return len(self.weight_U) < len(self.unit_N)

    def mean_sd(self, rows: list[int]) -> float:
        """Standard deviation of the mean of some runs, by the line's noise."""
        count_U = np.bincount(self.unit_N[rows], minlength=len(self.weight_U))
        return self.line.noise_sd * float((count_U**2 / self.weight_U).sum()) ** 0.5 / len(rows)


def cell_line(x_N: Array, y_N: Array, cell_N: NDArray[np.intp]) -> CellLine:
    """A straight line through runs at ``x_N``, the cells numbered from 0."""
    runs = Line(x_N, y_N)
    residual_N = y_N - np.array([runs.value(x) for x in x_N])
    weighting = lack_of_fit(residual_N, cell_N, num_parameters=2)
    count_C = np.bincount(cell_N)
    if len(count_C) < LEAST_CELLS or len(count_C) == len(x_N):
        unit_N, weight_U, line = np.arange(len(x_N)), np.ones(len(x_N)), runs
    else:
        unit_N, weight_U = cell_N, 2 / (1 + 1 / count_C)
        line = Line(cell_means(x_N, cell_N), cell_means(y_N, cell_N), weight_U)
    return CellLine(
        line=line, unit_N=unit_N, weight_U=weight_U, weighting=weighting, run_sd=runs.noise_sd
    )
