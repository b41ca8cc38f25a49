"""How the best learning rate and batch scale: laws through the optima of the cells.

A power of compute, or a product of powers of size and tokens. The first is right where the cells
lie on one path (tokens a power of the size), or where size and tokens act alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from analysis.drift import GROWTH, form_allowance
from analysis.fitting import fit_power_law
from analysis.hyperparams import CellOptimum, CellStatus, Setting
from analysis.laws import Array
from analysis.results import Fit, FitError, Interval, Prediction, stretched
from analysis.settings import FitSettings
from model.errors import ConfigError

FEWEST_CELLS = 3
_WHY_NOT: dict[CellStatus, str] = {
    "at_edge": "at the edge",
    "opens_downward": "without a lowest point",
    "too_few": "of too few values",
}


FORM_RATE = 0.29
"""What 90 % intervals lacked on published sweeps one e-fold of size or tokens beyond their cells,
in log of the optimum (`benchmarks/published_hyperparams.py`); it grows as a loss's does."""
ON_A_PATH = 2**-0.5
"""E-folds of size and tokens, as the root of their squares, in one of compute where both grow as
its root."""


@dataclass(frozen=True, kw_only=True)
class PlaneFit:
    """log y = log a + p·log N + q·log D by least squares: the optimal learning rate and batch
    against size and tokens, as in Li et al. (arXiv:2503.04715, eq. 1)."""

    name: str
    coefficient: float
    size_exponent: Interval
    token_exponent: Interval
    num_points: int
    noise_sd: float
    """Scatter of the cells' optima about the law, in log y."""
    center: tuple[float, float]
    """Means of log N and log D over the cells."""
    spread: tuple[tuple[float, float], tuple[float, float]]
    """Inverse of the sums of squares and products of log N and log D about the center: times
    noise_sd² the exponents' covariance."""
    size_range: tuple[float, float]
    token_range: tuple[float, float]
    largest: float
    """N·D of the largest cell."""
    form_rate: float = FORM_RATE
    """What forecasts are widened by for the law's form, in log y an e-fold beyond the cells."""

    def __call__(self, size: float, tokens: float) -> float:
        """y at size and tokens."""
        return float(
            self.coefficient * size**self.size_exponent.value * tokens**self.token_exponent.value
        )

    def predict(self, size: float, tokens: float, level: float = 0.9) -> Prediction:
        """The optimum that a new cell would measure, with its interval: the textbook one of a new
        point, and beyond the cells what the law's form may be off by."""
        off = np.log([size, tokens]) - np.array(self.center)
        variance = 1 + 1 / self.num_points + float(off @ np.array(self.spread) @ off)
        half = self._quantile(level) * self.noise_sd * variance**0.5
        beyond = np.hypot(_beyond(size, self.size_range), _beyond(tokens, self.token_range))
        form = form_allowance(np.exp(beyond), level, self.form_rate)
        half = float(np.hypot(half, form))
        value = self(size, tokens)
        return Prediction(
            value=value,
            low=float(value * np.exp(-half)),
            high=float(value * np.exp(half)),
            level=level,
            extrapolation_ratio=size * tokens / self.largest,
        )

    def apart(self, level: float = 0.9) -> Interval:
        """The size's exponent less the tokens'. Where it is not 0 compute alone says too little."""
        value = self.size_exponent.value - self.token_exponent.value
        (of_size, both), (_, of_tokens) = self.spread
        half = self._quantile(level) * self.noise_sd * (of_size + of_tokens - 2 * both) ** 0.5
        return Interval(value=value, low=value - half, high=value + half, level=level)

    def inverse(self, y: float, size: float) -> float:
        """The tokens at which a model of ``size`` has ``y`` as its optimum."""
        exponent = self.token_exponent.value
        if exponent == 0:
            raise ConfigError(f"{self.name} does not depend on the tokens: no inverse")
        return float((y / (self.coefficient * size**self.size_exponent.value)) ** (1 / exponent))

    def _quantile(self, level: float) -> float:
        return _student(max(self.num_points - 3, 1), level)


def against_compute(
    optima: Sequence[CellOptimum],
    what: Setting,
    settings: FitSettings | None = None,
) -> Fit:
    """The optimum as a power of training FLOPs, through the cells whose optimum lies inside.

    Raises:
        FitError: fewer than three of them.
    """
    inside = _inside(optima, what)
    fit = fit_power_law(
        [o.flops for o in inside], [getattr(o, what) for o in inside], settings, name=what
    )
    return replace(fit, form_rate=FORM_RATE * ON_A_PATH**GROWTH)


def against_size_and_tokens(
    optima: Sequence[CellOptimum],
    what: Setting,
    level: float = 0.9,
) -> PlaneFit:
    """The optimum as a product of powers of size and tokens.

    Raises:
        FitError: fewer than four cells inside, or one size or one token count only.
    """
    inside = _inside(optima, what)
    rows = np.array([[1.0, np.log(o.size), np.log(o.tokens)] for o in inside])
    if len(inside) < FEWEST_CELLS + 1 or _rank(rows - rows.mean(axis=0)) < 2:
        raise FitError(
            f"{what} against size and tokens: {len(inside)} cells with an optimum inside, four of "
            "at least two sizes and two token counts are needed"
        )
    logs = np.log([getattr(o, what) for o in inside])
    solved, *_ = np.linalg.lstsq(rows, logs, rcond=None)
    degrees = max(len(inside) - 3, 1)
    residual = logs - rows @ solved
    noise_sd = (float(residual @ residual) / degrees) ** 0.5
    center = rows[:, 1:].mean(axis=0)
    spread = np.linalg.inv((rows[:, 1:] - center).T @ (rows[:, 1:] - center))
    exponents = []
    for index in (0, 1):
        half = _student(degrees, level) * noise_sd * float(spread[index, index]) ** 0.5
        value = float(solved[1 + index])
        exponents.append(Interval(value=value, low=value - half, high=value + half, level=level))
    sizes, tokens = [o.size for o in inside], [o.tokens for o in inside]
    return PlaneFit(
        name=what,
        coefficient=float(np.exp(solved[0])),
        size_exponent=exponents[0],
        token_exponent=exponents[1],
        num_points=len(inside),
        noise_sd=noise_sd,
        center=(float(center[0]), float(center[1])),
        spread=(
            (float(spread[0, 0]), float(spread[0, 1])),
            (float(spread[1, 0]), float(spread[1, 1])),
        ),
        size_range=(min(sizes), max(sizes)),
        token_range=(min(tokens), max(tokens)),
        largest=max(o.size * o.tokens for o in inside),
    )


def _beyond(value: float, ends: tuple[float, float]) -> float:
    """E-folds outside the range; 0 within."""
    return max(float(np.log(value / ends[1])), float(np.log(ends[0] / value)), 0.0)


def _student(degrees: int, level: float) -> float:
    return float(stretched(ndtri((1 + level) / 2), degrees, level))


def _rank(rows: Array) -> int:
    """How many independent directions the cells vary in; rounding is none."""
    return int(np.linalg.matrix_rank(rows, tol=1e-9 * max(float(np.abs(rows).max()), 1e-300)))


def cells_in_no_law(optima: Sequence[CellOptimum], what: str) -> str:
    """How many cells have no optimum of the setting that a law could use, and why; "" if none."""
    whys = Counter(
        _WHY_NOT[o.status] if what in o.varied else "of one value"
        for o in optima
        if not _is_inside(o, what)
    )
    return ", ".join(f"{count} {why}" for why, count in whys.items())


def _inside(optima: Sequence[CellOptimum], what: str) -> list[CellOptimum]:
    inside = [o for o in optima if _is_inside(o, what)]
    if len(inside) < FEWEST_CELLS:
        rest = cells_in_no_law(optima, what) or "too few cells"
        raise FitError(
            f"{what}: {len(inside)} of {len(optima)} cells have their optimum inside what was "
            f"tried, three are needed ({rest}); widen the range"
        )
    return inside


def _is_inside(optimum: CellOptimum, what: str) -> bool:
    return optimum.status == "inside" and what in optimum.varied
