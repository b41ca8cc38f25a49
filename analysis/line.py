"""A straight line through points that scatter about it, and how well it is known anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from analysis.laws import Array
from analysis.results import FitError, Interval

LEAST_POINTS = 3
"""A line and one degree of freedom for its noise."""
ROUNDING = 1e-9
"""What is left of a square beside the line, as a share, where x has two values only."""


class Line:
    """y = a + b·(x - mean x) by least squares, with its noise.

    Args:
        x_N: places.
        y: values there.
        weight_N: how many points of weight 1 each is worth; by default 1.

    Raises:
        FitError: fewer than three points, or all of one x.
    """

    def __init__(
        self, x_N: Array, y: Sequence[float] | Array, weight_N: Array | None = None
    ) -> None:
        y_N = np.asarray(y, dtype=float)
        self._count = len(x_N)
        if self._count < LEAST_POINTS:
            raise FitError(
                f"a line through {self._count} points leaves nothing to know its noise by; "
                f"{LEAST_POINTS} are the least"
            )
        self._weight_N = np.ones(self._count) if weight_N is None else weight_N
        self._total = float(self._weight_N.sum())
        self.middle = float(self._weight_N @ x_N) / self._total
        centered_N = x_N - self.middle
        self._spread = float(self._weight_N @ centered_N**2)
        if np.ptp(x_N) == 0:
            raise FitError(f"all {self._count} points lie at x = {x_N[0]:g}: a line needs two")
        self.level_at_middle = float(self._weight_N @ y_N) / self._total
        self.slope = float((self._weight_N * centered_N) @ y_N) / self._spread
        residual_N = y_N - self.level_at_middle - self.slope * centered_N
        self._centered_N, self._residual_N = centered_N, residual_N
        self.degrees = self._count - 2
        self.noise_sd = float(np.sqrt(self._weight_N @ residual_N**2 / self.degrees))
        """Of a point of weight 1."""
        self.slope_sd = self.noise_sd / self._spread**0.5

    def value(self, x: float) -> float:
        """y on the line at ``x``."""
        return self.level_at_middle + self.slope * (x - self.middle)

    def sd(self, x: float) -> float:
        """Standard deviation of the line itself there."""
        share = 1 / self._total + (x - self.middle) ** 2 / self._spread
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
        weight_N = self._weight_N
        square_N = self._centered_N**2
        square_N = square_N - float(weight_N @ square_N) / self._total
        along = float((weight_N * self._centered_N) @ square_N)
        square_N = square_N - along / self._spread * self._centered_N
        size = float(weight_N @ square_N**2)
        if self.degrees < 2 or size <= ROUNDING * self._spread**2 / self._total:
            return 1.0
        bend = float((weight_N * square_N) @ self._residual_N) / size
        left = float(weight_N @ self._residual_N**2) - bend**2 * size
        if left <= 0:
            return 1.0
        score = abs(bend) * (size * (self.degrees - 1) / left) ** 0.5
        return float(2 * stdtr(self.degrees - 1, -score))
