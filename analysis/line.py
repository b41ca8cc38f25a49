"""A straight line through points that scatter about it, and how well it is known anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from analysis.laws import Array
from analysis.results import Interval

ROUNDING = 1e-9
"""What is left of a square beside the line, as a share, where x has two values only."""


class Line:
    """y = a + b·(x - mean x) by least squares, with its noise."""

    def __init__(self, x_N: Array, y: Sequence[float] | Array) -> None:
        y_N = np.asarray(y, dtype=float)
        self.middle = float(x_N.mean())
        centered_N = x_N - self.middle
        self._spread = float((centered_N**2).sum())
        self._count = len(x_N)
        self.level_at_middle = float(y_N.mean())
        self.slope = float((centered_N @ y_N) / self._spread)
        residual_N = y_N - self.level_at_middle - self.slope * centered_N
        self._centered_N, self._residual_N = centered_N, residual_N
        self.degrees = self._count - 2
        self.noise_sd = float(np.sqrt((residual_N**2).sum() / self.degrees))
        self.slope_sd = self.noise_sd / self._spread**0.5

    def value(self, x: float) -> float:
        """y on the line at ``x``."""
        return self.level_at_middle + self.slope * (x - self.middle)

    def sd(self, x: float) -> float:
        """Standard deviation of the line itself there."""
        share = 1 / self._count + (x - self.middle) ** 2 / self._spread
        return self.noise_sd * share**0.5

    def quantile(self, level: float) -> float:
        """Student's, of the line's degrees of freedom, for an interval of ``level``."""
        return float(stdtrit(self.degrees, (1 + level) / 2))

    def interval(self, x: float, level: float) -> Interval:
        """Where the line may lie at ``x``."""
        reach = self.quantile(level) * self.sd(x)
        value = self.value(x)
        return Interval(value=value, low=value - reach, high=value + reach, level=level)

    def chance_below_zero(self, x: float) -> float:
        """Probability that the line is negative there."""
        return float(stdtr(self.degrees, -self.value(x) / max(self.sd(x), 1e-300)))

    def bend_chance(self) -> float:
        """The chance that points about a straight line bend as much as these; 1 if untestable.

        Student's t of the coefficient of (x - mean x)², what the line takes of it left out.
        """
        square_N = self._centered_N**2
        square_N = square_N - square_N.mean()
        square_N = square_N - (self._centered_N @ square_N) / self._spread * self._centered_N
        size = float(square_N @ square_N)
        if self.degrees < 2 or size <= ROUNDING * self._spread**2 / self._count:
            return 1.0
        bend = float(square_N @ self._residual_N) / size
        left = float((self._residual_N**2).sum()) - bend**2 * size
        if left <= 0:
            return 1.0
        score = abs(bend) * (size * (self.degrees - 1) / left) ** 0.5
        return float(2 * stdtr(self.degrees - 1, -score))
