"""The lack-of-fit test: does what runs are fitted with miss their cells by more than seeds do?

The cells' means about the law against the runs about their cell's mean (Fisher 1922; Draper &
Smith, Applied Regression Analysis, section 2.1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.noise import pooled
from analysis.robust import WINSOR, robust_sd
from analysis.seed_weights import Weighting

UNLIKELY = 0.1
"""Cells are said to be missed where chance alone would make it seem so less often than this."""


def lack_of_fit(
    residual_N: Array, cell_N: NDArray[np.intp], num_parameters: int
) -> Weighting | None:
    """What seeds do, what the cells have of their own, and the chance of so much of it.

    Args:
        residual_N: of the runs about the law.
        cell_N: of the runs, numbered from 0.
        num_parameters: of the law.

    Returns:
        None where no cell was repeated, or there are too few cells to judge by.
    """
    from scipy.special import fdtrc  # here: a status reads fits and can't spare it

    squares, count_C, mean_C = pooled(residual_N, cell_N)
    cells = len(count_C)
    between, within = cells - num_parameters, len(cell_N) - cells
    if within == 0 or between < 1:
        return None
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
        misfit = np.sqrt(excess * cells / (between * len(cell_N)))
    return Weighting(
        seeds_sd=seeds_sd,
        misfit_sd=float(misfit),
        chance=chance,
        cells=cells,
        most_seeds=int(count_C.max()),
    )
