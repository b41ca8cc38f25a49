"""The best learning rate and batch of each cell, and how they scale.

In log learning rate and log batch the loss near its optimum is a quadratic bowl. One is fitted to
each cell (one size, one token count, several learning rates and maybe batches); its minimum is the
cell's optimum, its curvature says how sharp that is. A minimum outside what was tried is a bound, a
bowl that opens downward has none. The optima that hold are then fitted against compute, or against
size and tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from analysis.fitting import fit_power_law
from analysis.laws import Array
from analysis.points import Points
from analysis.results import Fit, FitError, Interval, stretched
from analysis.robust import robust_sd
from analysis.settings import FitSettings
from model.errors import ConfigError

FEWEST_CELLS = 3
SAME_TOKENS = 1.03
"""A budget in whole batches of several sizes is nearly the same count: so near, it is one."""
NEAR_OPTIMAL = 0.0025
"""Within 0.25% of the least loss a learning rate counts as near-optimal (arXiv:2507.17702)."""

CellStatus = Literal["inside", "at_edge", "opens_downward", "too_few"]
_WHY_NOT: dict[CellStatus, str] = {
    "at_edge": "at the edge",
    "opens_downward": "without a lowest point",
    "too_few": "of too few values",
}


@dataclass(frozen=True)
class Bowl:
    """Log-loss as height + slope·x + x·hessian·x/2; x: logs of the settings off their centers."""

    axes: tuple[str, ...]
    """What x is: peak_lr, batch_tokens, or both."""
    centers: tuple[float, ...]
    height: float
    slope_K: Array
    hessian_KK: Array

    def __call__(self, x_K: Array) -> float:
        """Log-loss at x."""
        return self.height + float(self.slope_K @ x_K + 0.5 * x_K @ self.hessian_KK @ x_K)

    def loss(self, peak_lr: float, batch_tokens: float) -> float:
        """Nats per token at a learning rate and batch."""
        at = {"peak_lr": peak_lr, "batch_tokens": batch_tokens}
        off = [np.log(at[name]) - c for name, c in zip(self.axes, self.centers, strict=True)]
        return float(np.exp(self(np.array(off))))


@dataclass(frozen=True, kw_only=True)
class CellOptimum:
    """Where one cell's loss is least."""

    size: float
    tokens: float
    flops: float
    peak_lr: float
    batch_tokens: float
    """Of the minimum; the one value tried where the cell varies only the learning rate."""
    loss: float
    status: CellStatus
    lr_range: tuple[float, float]
    """Learning rates whose loss the bowl puts within 0.25% of the least."""
    num_runs: int
    varied: tuple[str, ...] = ("peak_lr", "batch_tokens")
    """Settings of which the cell tried several values: of no other has it an optimum."""
    note: str = ""
    bowl: Bowl | None = None
    """What was fitted to the cell; None where too few settings were tried."""


@dataclass(frozen=True, kw_only=True)
class PlaneFit:
    """log y = log a + p·log N + q·log D by least squares: the optimal learning rate and batch
    against size and tokens, as in Li et al. (arXiv:2503.04715, eq. 1)."""

    name: str
    coefficient: float
    size_exponent: Interval
    token_exponent: Interval
    num_points: int

    def __call__(self, size: float, tokens: float) -> float:
        """y at size and tokens."""
        return float(
            self.coefficient * size**self.size_exponent.value * tokens**self.token_exponent.value
        )

    def inverse(self, y: float, size: float) -> float:
        """The tokens at which a model of ``size`` has ``y`` as its optimum."""
        exponent = self.token_exponent.value
        if exponent == 0:
            raise ConfigError(f"{self.name} does not depend on the tokens: no inverse")
        return float((y / (self.coefficient * size**self.size_exponent.value)) ** (1 / exponent))


def cell_optima(points: Points) -> tuple[CellOptimum, ...]:
    """One optimum a cell, smallest compute first. The points carry peak_lr and batch_tokens."""
    lr = points.column("peak_lr", "the learning-rate law")
    # A grid of learning rates alone need not say its batch.
    has_batch = "batch_tokens" in points.extra
    batch = points.array("batch_tokens") if has_batch else np.ones_like(lr)
    loss, flops = points.array("loss"), points.array("flops")
    size, tokens = points.array("size"), points.array("tokens")
    found = [
        _cell(
            size[rows[0]],
            float(np.median(tokens[rows])),
            float(np.median(flops[rows])),
            lr[rows],
            batch[rows],
            loss[rows],
        )
        for rows in rows_of_cells(size, tokens)
    ]
    return tuple(sorted(found, key=lambda optimum: optimum.flops))


def rows_of_cells(size_N: Array, tokens_N: Array) -> Iterator[NDArray[np.intp]]:
    """The rows of each size and token count; what is whole batches of one budget is one count."""
    for size in dict.fromkeys(size_N.tolist()):
        rows = np.flatnonzero(size_N == size)
        rows = rows[np.argsort(tokens_N[rows], kind="stable")]
        apart = np.flatnonzero(np.diff(np.log(tokens_N[rows])) > np.log(SAME_TOKENS)) + 1
        yield from (np.sort(part) for part in np.split(rows, apart))


def against_compute(
    optima: Sequence[CellOptimum],
    what: Literal["peak_lr", "batch_tokens"],
    settings: FitSettings | None = None,
) -> Fit:
    """The optimum as a power of training FLOPs, through the cells whose optimum lies inside.

    Raises:
        FitError: fewer than three of them.
    """
    inside = _inside(optima, what)
    return fit_power_law(
        [o.flops for o in inside], [getattr(o, what) for o in inside], settings, name=what
    )


def against_size_and_tokens(
    optima: Sequence[CellOptimum],
    what: Literal["peak_lr", "batch_tokens"],
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
    degrees = len(inside) - 3
    residual = logs - rows @ solved
    covariance = np.linalg.inv(rows.T @ rows) * float(residual @ residual) / max(degrees, 1)
    intervals = []
    for index in (1, 2):
        quantile = float(stretched(ndtri((1 + level) / 2), max(degrees, 1), level))
        half = quantile * float(covariance[index, index]) ** 0.5
        value = float(solved[index])
        intervals.append(Interval(value=value, low=value - half, high=value + half, level=level))
    return PlaneFit(
        name=what,
        coefficient=float(np.exp(solved[0])),
        size_exponent=intervals[0],
        token_exponent=intervals[1],
        num_points=len(inside),
    )


def _rank(rows: Array) -> int:
    """How many independent directions the cells vary in; rounding is none."""
    return int(np.linalg.matrix_rank(rows, tol=1e-9 * max(float(np.abs(rows).max()), 1e-300)))


def _inside(optima: Sequence[CellOptimum], what: str) -> list[CellOptimum]:
    inside = [o for o in optima if o.status == "inside" and what in o.varied]
    if len(inside) < FEWEST_CELLS:
        whys = Counter(
            _WHY_NOT[o.status] if what in o.varied else "of one value"
            for o in optima
            if o not in inside
        )
        rest = ", ".join(f"{count} {why}" for why, count in whys.items())
        raise FitError(
            f"{what}: {len(inside)} of {len(optima)} cells have their optimum inside what was "
            f"tried, three are needed ({rest or 'too few cells'}); widen the range"
        )
    return inside


def _cell(
    size: float, tokens: float, flops: float, lr: Array, batch: Array, loss: Array
) -> CellOptimum:
    best = int(loss.argmin())
    names = ("peak_lr", "batch_tokens")
    axes = tuple(
        name
        for name, tried_at in zip(names, (lr, batch), strict=True)
        if len(np.unique(tried_at)) > 1
    )

    def made(
        status: CellStatus,
        lr_at: float,
        batch_at: float,
        low: float,
        ends: tuple[float, float],
        note: str = "",
        bowl: Bowl | None = None,
    ) -> CellOptimum:
        return CellOptimum(
            size=float(size),
            tokens=float(tokens),
            flops=float(flops),
            peak_lr=lr_at,
            batch_tokens=batch_at,
            loss=low,
            status=status,
            lr_range=ends,
            num_runs=len(loss),
            varied=axes,
            note=note,
            bowl=bowl,
        )

    lr_at, batch_at, low = float(lr[best]), float(batch[best]), float(loss[best])
    tried = (float(lr.min()), float(lr.max()))
    varied = [axis for axis in (np.log(lr), np.log(batch)) if len(np.unique(axis)) > 1]
    needed = {0: 1, 1: 3, 2: 6}[len(varied)]
    if not varied or len(loss) < needed or min(len(np.unique(axis)) for axis in varied) < 3:
        note = f"{len(loss)} runs; three values of each varied setting, {needed} runs, are needed"
        return made("too_few", lr_at, batch_at, low, tried, note)
    centers = [float(axis.mean()) for axis in varied]
    x = np.stack([axis - c for axis, c in zip(varied, centers, strict=True)], axis=1)
    bowl = _bowl(x, np.log(loss), axes, tuple(centers))
    if not (np.linalg.eigvalsh(bowl.hessian_KK) > 0).all():
        return made("opens_downward", lr_at, batch_at, low, tried, "the bowl opens downward", bowl)
    vertex = -np.linalg.solve(bowl.hessian_KK, bowl.slope_K)
    lowest, highest = x.min(axis=0), x.max(axis=0)
    is_inside = bool(((vertex > lowest) & (vertex < highest)).all())
    at = np.clip(vertex, lowest, highest)
    values = dict(zip(range(len(varied)), np.exp(at + centers), strict=True))
    has_lr = len(np.unique(lr)) > 1
    lr_at = float(values[0]) if has_lr else lr_at
    batch_at = float(values[len(varied) - 1]) if len(np.unique(batch)) > 1 else batch_at
    reach = float(np.sqrt(2 * np.log1p(NEAR_OPTIMAL) * np.linalg.inv(bowl.hessian_KK)[0, 0]))
    ends = (lr_at * np.exp(-reach), lr_at * np.exp(reach)) if has_lr else tried
    least = float(np.exp(bowl(at)))
    note = "" if is_inside else "the minimum lies outside what was tried: a bound"
    return made("inside" if is_inside else "at_edge", lr_at, batch_at, least, ends, note, bowl)


def _bowl(
    x_NK: Array, log_loss_N: Array, axes: tuple[str, ...], centers: tuple[float, ...]
) -> Bowl:
    """Quadratic in one or two logs, reweighted so that a run about to diverge does not tilt it."""
    count = x_NK.shape[1]
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    squares = np.stack([x_NK[:, i] * x_NK[:, j] for i, j in pairs], axis=1)
    rows = np.concatenate([np.ones((len(x_NK), 1)), x_NK, squares], axis=1)
    weight = np.ones(len(x_NK))
    for _ in range(10):
        root = np.sqrt(weight)
        solved, *_ = np.linalg.lstsq(rows * root[:, None], log_loss_N * root, rcond=None)
        residual = log_loss_N - rows @ solved
        if len(residual) <= len(solved) + 1:
            break
        spread = max(robust_sd(residual, len(solved)), 1e-12)
        weight = np.minimum(1.0, 2.0 * spread / np.maximum(np.abs(residual), 1e-300))
    hessian = np.zeros((count, count))
    for (i, j), value in zip(pairs, solved[1 + count :], strict=True):
        hessian[i, j] += value
        hessian[j, i] += value
    return Bowl(
        axes=axes,
        centers=centers,
        height=float(solved[0]),
        slope_K=solved[1 : 1 + count],
        hessian_KK=hessian,
    )
