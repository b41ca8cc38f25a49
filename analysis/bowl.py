"""A quadratic bowl through the losses of one cell, near their lowest point.

Far from the best setting a loss is no parabola of its logarithm: past some learning rate runs
diverge, and of a wide grid a third may have. So a run counts the less the further its loss lies
above the lowest, and where few lie near, as many more count as are needed to tell the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws import Array
from analysis.robust import robust_sd

NEAR = 0.01
"""Log-loss above the lowest at which a run counts e times less. With 0.005 to 0.02 two halves of a
published grid found its optimum within 6 % of each other (LOG.md)."""
FEWEST = {1: 4, 2: 12}
"""What the weights add up to at least, by the number of settings; so few runs count alike."""
FAINTEST = 1e-8
"""Weight of a run far above: it says which way is up where no other run does."""
COUNTS = 0.05
"""Weight from which a run's residual tells the scatter."""


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

    def vertex(self) -> Array:
        """x where the slope is nought: the minimum, where the bowl opens upward."""
        return np.asarray(-np.linalg.solve(self.hessian_KK, self.slope_K))

    def loss(self, peak_lr: float, batch_tokens: float) -> float:
        """Nats per token at a learning rate and batch."""
        at = {"peak_lr": peak_lr, "batch_tokens": batch_tokens}
        off = [np.log(at[name]) - c for name, c in zip(self.axes, self.centers, strict=True)]
        return float(np.exp(self(np.array(off))))


def fit_bowl(
    x_NK: Array, log_loss_N: Array, axes: tuple[str, ...], centers: tuple[float, ...]
) -> Bowl:
    """The bowl near the lowest loss, x off the centers; reweighted so that a run about to diverge,
    or one whose loss was read too low, does not tilt it."""
    count = x_NK.shape[1]
    rows = bowl_terms(x_NK)
    near = nearness(log_loss_N, count)
    scatters = near >= COUNTS
    weight = near
    for _ in range(10):
        root = np.sqrt(weight)
        solved, *_ = np.linalg.lstsq(rows * root[:, None], log_loss_N * root, rcond=None)
        if len(rows) <= len(solved) + 1:
            break
        residual = (log_loss_N - rows @ solved) * np.sqrt(near)
        spread = max(robust_sd(residual[scatters], len(solved)), 1e-12)
        weight = near * np.minimum(1.0, 2.0 * spread / np.maximum(np.abs(residual), 1e-300))
    hessian = np.zeros((count, count))
    for (i, j), value in zip(_pairs(count), solved[1 + count :], strict=True):
        hessian[i, j] += value
        hessian[j, i] += value
    return Bowl(
        axes=axes,
        centers=centers,
        height=float(solved[0]),
        slope_K=np.asarray(solved[1 : 1 + count], dtype=float),
        hessian_KK=hessian,
    )


def nearness(log_loss_N: Array, settings: int) -> Array:
    """How much each run counts in the bowl of so many settings."""
    above_N, width = log_loss_N - log_loss_N.min(), NEAR
    if len(above_N) <= FEWEST[settings]:
        return np.ones(len(above_N))
    while (near := np.exp(-above_N / width)).sum() < FEWEST[settings]:
        width *= 1.1
    return np.maximum(near, FAINTEST)


def bowl_terms(x_NK: Array) -> Array:
    """1, each x, and the products of two: what a bowl is a sum of."""
    squares = [x_NK[:, i] * x_NK[:, j] for i, j in _pairs(x_NK.shape[1])]
    return np.column_stack([np.ones(len(x_NK)), x_NK, *squares])


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i, count)]
