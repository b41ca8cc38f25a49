"""The noise floor: how far runs of one cell that differ in their seed alone lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.points import Points


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Pooled spread of log-loss between repeated seeds."""

    sd: float
    """Standard deviation of log-loss within cells."""
    degrees_of_freedom: int
    """Runs in repeated cells minus the number of such cells."""
    cells: int


def noise_floor(points: Points) -> NoiseFloor | None:
    """The measured noise floor, or None where no cell was repeated."""
    _, cell_N = np.unique(np.asarray(points.cell), return_inverse=True)
    log_N = np.log(points.array("loss"))
    count_C = np.bincount(cell_N)
    mean_C = np.bincount(cell_N, weights=log_N) / count_C
    cells = int((count_C > 1).sum())
    if cells == 0:
        return None
    degrees = int((count_C[count_C > 1] - 1).sum())
    squares = float(((log_N - mean_C[cell_N]) ** 2).sum())
    return NoiseFloor(sd=(squares / degrees) ** 0.5, degrees_of_freedom=degrees, cells=cells)
