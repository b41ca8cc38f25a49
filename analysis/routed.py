"""The unified law of routed models: log loss bilinear in log size and log of experts, saturating.

    ln L = a·ln N + b·ln Ê + c·ln N·ln Ê + d,   1/Ê = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max

(Clark et al., arXiv:2202.01169, eqs. 6 and 8; c, and d, depend on the logs' base: natural here, 10
in the paper.) At given E_start and E_max it is linear, so a two-dimensional search is all there is
to it. E_max is weakly determined: judge the law by its errors, not by that parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.bootstrap import resample_runs
from analysis.laws import Array
from analysis.results import FitError, Interval, stretched
from analysis.settings import FitSettings

START_RANGE = (1.0, 30.0)
MAX_RANGE = (40.0, 1e5)
GRID = 40
REFINEMENTS = 10
"""Each shrinks the grid to three eighths around its best point."""
LN10 = float(np.log(10))


@dataclass(frozen=True, kw_only=True)
class RoutedLaw:
    """Loss at (size, experts); natural logs inside."""

    PARAMETERS: ClassVar[tuple[str, ...]] = ("a", "b", "c", "d", "E_start", "E_max")
    VARIABLES: ClassVar[tuple[str, ...]] = ("size", "num_experts")

    kind: Literal["routed"] = "routed"
    a: float
    b: float
    c: float
    d: float
    E_start: float
    E_max: float

    def __call__(self, size: ArrayLike, num_experts: ArrayLike) -> Array:
        """Loss of a model of dense size ``size`` whose routed layers have ``num_experts``."""
        log_size = np.log(np.asarray(size, dtype=float))
        log_experts = np.log(saturated(num_experts, self.E_start, self.E_max))
        bilinear = (self.b + self.c * log_size) * log_experts
        return np.asarray(np.exp(self.a * log_size + bilinear + self.d))

    def effective_size(self, size: float, num_experts: float) -> float:
        """Size of the model without routing that has the same loss (the paper's EPC)."""
        bare = float(np.log(saturated(1.0, self.E_start, self.E_max)))
        loss = float(np.log(self(size, num_experts)))
        return float(np.exp((loss - self.d - self.b * bare) / (self.a + self.c * bare)))

    def base_10(self) -> dict[str, float]:
        """The coefficients as the paper prints them, for log10 of everything."""
        return {"a": self.a, "b": self.b, "c": self.c * LN10, "d": self.d / LN10}


@dataclass(frozen=True, kw_only=True)
class RoutedFit:
    """The law, its errors and its coefficients' intervals."""

    law: RoutedLaw
    coefficients: dict[str, Interval]
    rmse_log10: float
    """Root mean square of log10(measured / law), the paper's measure."""
    num_points: int
    flat_E_max: Interval
    """Every E_max whose error is within 1% of the best: how little it is determined."""


def saturated(num_experts: ArrayLike, start: ArrayLike, most: ArrayLike) -> Array:
    """Ê: E at first, E_max in the end, E_start for one expert."""
    experts = np.asarray(num_experts, dtype=float)
    start, most = np.asarray(start, dtype=float), np.asarray(most, dtype=float)
    offset = 1 / (1 / start - 1 / most)
    return np.asarray(1 / (1 / (experts - 1 + offset) + 1 / most))


def fit_routed(
    size: Sequence[float],
    num_experts: Sequence[float],
    loss: Sequence[float],
    settings: FitSettings | None = None,
) -> RoutedFit:
    """Least squares in log loss, as published; the search is exhaustive in E_start and E_max.

    Raises:
        FitError: seven points or fewer.
    """
    settings = settings or FitSettings()
    size_N, experts_N, loss_N = (np.asarray(v, dtype=float) for v in (size, num_experts, loss))
    if len(loss_N) < len(RoutedLaw.PARAMETERS) + 1:
        raise FitError(f"{len(loss_N)} points for the 6 parameters of RoutedLaw")
    log_N = np.log(loss_N)
    ones_N = np.ones(len(loss_N))
    center = float(np.log(size_N).mean())
    logs_N = np.log(size_N) - center
    start, most, _ = _search(logs_N, experts_N, log_N, ones_N)
    law = _law(logs_N, experts_N, log_N, ones_N, start, most, center)
    residual_N = np.log(law(size_N, experts_N)) - log_N
    counts_RN = resample_runs(len(loss_N), min(settings.replicates, 300), settings.seed)
    replicates = [_replicate(logs_N, experts_N, log_N, row, center) for row in counts_RN]
    tail = (1 - settings.level) / 2
    coefficients = {}
    for name in RoutedLaw.PARAMETERS:
        value = float(getattr(law, name))
        deviation = np.array([getattr(r, name) for r in replicates]) - value
        low, high = value + stretched(
            np.quantile(deviation, [tail, 1 - tail]), len(loss_N) - 6, settings.level
        )
        coefficients[name] = Interval(
            value=value,
            low=float(min(low, value)),
            high=float(max(high, value)),
            level=settings.level,
        )
    return RoutedFit(
        law=law,
        coefficients=coefficients,
        rmse_log10=float(np.sqrt((residual_N**2).mean()) / LN10),
        num_points=len(loss_N),
        flat_E_max=_flat(logs_N, experts_N, log_N, most),
    )


def _replicate(
    logs_N: Array, experts_N: Array, log_N: Array, count_N: Array, center: float
) -> RoutedLaw:
    start, most, _ = _search(logs_N, experts_N, log_N, count_N)
    return _law(logs_N, experts_N, log_N, count_N, start, most, center)


def _law(
    logs_N: Array,
    experts_N: Array,
    log_N: Array,
    weight_N: Array,
    start: float,
    most: float,
    center: float,
) -> RoutedLaw:
    columns = _columns(logs_N, experts_N, np.array([start]), np.array([most]))[0]
    root_N = np.sqrt(weight_N)
    (d, a, b, c), *_ = np.linalg.lstsq(columns * root_N[:, None], log_N * root_N, rcond=None)
    # From sizes centred at exp(center) to plain ones.
    return RoutedLaw(
        a=float(a),
        b=float(b - c * center),
        c=float(c),
        d=float(d - a * center),
        E_start=start,
        E_max=most,
    )


def _search(
    logs_N: Array, experts_N: Array, log_N: Array, weight_N: Array
) -> tuple[float, float, float]:
    """E_start and E_max of least squares, and their sum of squares."""
    low = np.log([START_RANGE[0], MAX_RANGE[0]])
    high = np.log([START_RANGE[1], MAX_RANGE[1]])
    floor, roof = low, high
    best = np.inf, low
    for step in range(REFINEMENTS):
        count = GRID if step == 0 else 9
        axes = [np.linspace(low[i], high[i], count) for i in (0, 1)]
        start_S, most_S = (axis.ravel() for axis in np.exp(np.meshgrid(*axes)))
        squares_S = _squares(logs_N, experts_N, log_N, weight_N, start_S, most_S)
        at = int(squares_S.argmin())
        best = float(squares_S[at]), np.log([start_S[at], most_S[at]])
        reach = (high - low) / (count - 1) * 1.5
        low, high = np.maximum(best[1] - reach, floor), np.minimum(best[1] + reach, roof)
    start, most = np.exp(best[1])
    return float(start), float(most), best[0]


def _squares(
    logs_N: Array, experts_N: Array, log_N: Array, weight_N: Array, start_S: Array, most_S: Array
) -> Array:
    """Weighted sum of squares with the four coefficients solved, at each (E_start, E_max)."""
    columns_SNK = _columns(logs_N, experts_N, start_S, most_S)
    weighted_SNK = columns_SNK * weight_N[:, None]
    gram_SKK = weighted_SNK.transpose(0, 2, 1) @ columns_SNK
    right_SK = weighted_SNK.transpose(0, 2, 1) @ log_N
    gram_SKK += 1e-12 * np.trace(gram_SKK, axis1=1, axis2=2)[:, None, None] * np.eye(4)
    solved_SK = np.linalg.solve(gram_SKK, right_SK[..., None])[..., 0]
    residual_SN = log_N - (columns_SNK @ solved_SK[..., None])[..., 0]
    return np.asarray((weight_N * residual_SN**2).sum(axis=1))


def _columns(logs_N: Array, experts_N: Array, start_S: Array, most_S: Array) -> Array:
    """1, ln N, ln Ê and their product, [S, N, 4]."""
    log_SN = np.log(saturated(experts_N, start_S[:, None], most_S[:, None]))
    size_SN = np.broadcast_to(logs_N, log_SN.shape)
    return np.stack([np.ones_like(log_SN), size_SN, log_SN, size_SN * log_SN], axis=-1)


def _flat(logs_N: Array, experts_N: Array, log_N: Array, most: float) -> Interval:
    """The values of E_max that fit within 1% of the best error, E_start chosen for each."""
    ones_N = np.ones(len(log_N))
    grid, starts = np.geomspace(*MAX_RANGE, 120), np.geomspace(*START_RANGE, 60)
    start_S, most_S = np.tile(starts, len(grid)), np.repeat(grid, len(starts))
    squares = _squares(logs_N, experts_N, log_N, ones_N, start_S, most_S)
    by_most = squares.reshape(len(grid), -1).min(axis=1)
    good = grid[by_most <= by_most.min() * 1.01**2]
    return Interval(value=most, low=float(min(good.min(), most)), high=float(max(good.max(), most)))
