"""The noise floor: how far runs of one cell that differ in their seed alone lie apart."""

from __future__ import annotations

from dataclasses import dataclass

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
    raise NotImplementedError
