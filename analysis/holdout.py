"""Judgement by hold-out: fit without the largest budgets, forecast them, compare."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.results import Prediction


@dataclass(frozen=True, kw_only=True)
class HeldOutPoint:
    """One point that the fit did not see."""

    label: str
    size: float
    tokens: float
    flops: float
    measured: float
    forecast: Prediction

    @property
    def error(self) -> float:
        """Forecast over measured, minus 1."""
        return self.forecast.value / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies in the forecast's interval."""
        return self.forecast.contains(self.measured)


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """The largest budgets forecast from the rest."""

    budgets: int
    """How many of the largest budgets were left out."""
    points: tuple[HeldOutPoint, ...]

    @property
    def mean_abs_error(self) -> float:
        """Mean of |forecast over measured - 1|."""
        return sum(abs(point.error) for point in self.points) / len(self.points)

    @property
    def num_inside(self) -> int:
        """How many measured losses lie in their intervals."""
        return sum(point.inside for point in self.points)
