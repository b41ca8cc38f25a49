"""The best learning rate and batch of each cell.

In log learning rate and log batch the loss near its optimum is a quadratic bowl. One is fitted to
each cell (one size, one token count, several learning rates and maybe batches); its minimum is the
cell's optimum, its curvature says how sharp that is. A minimum outside what was tried is a bound, a
bowl that opens downward has none. How the optima scale: :mod:`analysis.hyperparam_laws`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.bowl import Bowl, fit_bowl
from analysis.laws import Array
from analysis.points import Points

SAME_TOKENS = 1.03
"""A budget in whole batches of several sizes is nearly the same count: so near, it is one."""
NEAR_OPTIMAL = 0.0025
"""Within 0.25% of the least loss a learning rate counts as near-optimal (arXiv:2507.17702)."""

Setting = Literal["peak_lr", "batch_tokens"]
CellStatus = Literal["inside", "at_edge", "opens_downward", "too_few"]


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

    def beyond(self, setting: Setting) -> int:
        """1 where the bowl is lowest above what was tried of this setting, -1 below, 0 inside;
        0 without a lowest point, or without the bowl."""
        if self.status != "at_edge" or self.bowl is None or setting not in self.bowl.axes:
            return 0
        index = self.bowl.axes.index(setting)
        edge = np.log(getattr(self, setting)) - self.bowl.centers[index]
        further = self.bowl.vertex()[index] - edge
        return int(np.sign(further)) if abs(further) > 1e-9 else 0


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
    bowl = fit_bowl(x, np.log(loss), axes, tuple(centers))
    if not (np.linalg.eigvalsh(bowl.hessian_KK) > 0).all():
        return made("opens_downward", lr_at, batch_at, low, tried, "the bowl opens downward", bowl)
    vertex = bowl.vertex()
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
