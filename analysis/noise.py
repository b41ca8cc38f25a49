"""The noise floor: how far runs of one cell that differ in their seed alone lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from analysis.laws import Array
from analysis.points import Points


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Pooled spread of log-loss between repeated seeds."""

    sd: float
    """Standard deviation of log-loss within cells."""
    degrees_of_freedom: int
    """Runs in repeated cells minus the number of such cells."""
    cells: int


def central_deviations(level: float) -> float:
    """Standard deviations from the middle that hold the central ``level`` of a normal."""
    return float(ndtri((1 + level) / 2))


def noise_floor(points: Points) -> NoiseFloor | None:
    """The measured noise floor, or None where no cell was repeated."""
    _, cell_N = np.unique(np.asarray(points.cell), return_inverse=True)
    return noise_within(points.array("loss"), cell_N)


def noise_within(loss_N: Array, cell_N: NDArray[np.intp]) -> NoiseFloor | None:
    """The same of losses whose cells are numbered from 0."""
    squares, count_C, _ = pooled(np.log(loss_N), cell_N)
    cells = int((count_C > 1).sum())
    if cells == 0:
        return None
    degrees = int((count_C[count_C > 1] - 1).sum())
    return NoiseFloor(sd=(squares / degrees) ** 0.5, degrees_of_freedom=degrees, cells=cells)


def cell_means(values_N: Array, cell_N: NDArray[np.intp]) -> Array:
    """The mean of each cell [C]; cells are numbered from 0."""
    return np.asarray(np.bincount(cell_N, weights=values_N) / np.bincount(cell_N))


def pooled(values_N: Array, cell_N: NDArray[np.intp]) -> tuple[float, NDArray[np.intp], Array]:
    """Squares about the cells' means summed over all, the runs and the mean of each cell [C]."""
    mean_C = cell_means(values_N, cell_N)
    return float(((values_N - mean_C[cell_N]) ** 2).sum()), np.bincount(cell_N), mean_C


def unnamed_settings(points: Points) -> tuple[str, ...]:
    """Further columns in which runs of one cell differ, so that more than their seeds does.

    A setting's few values come up again in other cells; a column of mostly different values was
    measured and tells nothing. Columns called a seed may differ.
    """
    _, cell_N, count_C = np.unique(np.asarray(points.cell), return_inverse=True, return_counts=True)
    repeated_N = count_C[cell_N] > 1
    found = []
    for name, column in (points.extra | points.words).items():
        _, values_N = np.unique(np.asarray(column), return_inverse=True)
        few = len(np.unique(values_N[repeated_N])) <= repeated_N.sum() / 2
        pairs = len(np.unique(np.stack([cell_N, values_N]), axis=1).T)
        if few and pairs > len(count_C) and "seed" not in name.lower():
            found.append(name)
    return tuple(found)
