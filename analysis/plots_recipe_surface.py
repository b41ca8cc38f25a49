"""One cell tried at many learning rates and batches: its losses as squares, its bowl as lines."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.hyperparams import CellOptimum
from analysis.plots_style import FORECAST, INK, MUTED, SIZES, padded, rate_axis, si
from analysis.records import RunRecord

STEPS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Loss above the best of the cell, in percent, where the colours change; those that occur are used.
"""
MOST_STEPS = 6


def draw_surface(figure: Figure, axes: Axes, runs: list[RunRecord], optimum: CellOptimum) -> None:
    """Squares where runs were, contours of the bowl between them, a cross at its lowest point."""
    best = min(record.heldout_nats for record in runs)
    excess = {record.run_id: 100 * (record.heldout_nats / best - 1) for record in runs}
    steps = _steps(max(excess.values()))
    colors = ListedColormap([SIZES[::-1][round(i * 10 / len(steps))] for i in range(len(steps))])
    norm = BoundaryNorm(steps, len(steps), extend="max")
    axes.scatter(
        [record.peak_lr for record in runs],
        [record.batch_tokens for record in runs],
        c=[excess[record.run_id] for record in runs],
        cmap=colors,
        norm=norm,
        marker="s",
        s=70,
        zorder=2,
    )
    x = padded([record.peak_lr for record in runs], 0.12)
    y = padded([record.batch_tokens for record in runs], 0.12)
    if optimum.bowl is not None and len(optimum.bowl.axes) == 2:
        _draw_bowl(axes, optimum, x, y, steps)
    axes.set_yscale("log")
    axes.set_ylim(*y)
    tried = sorted({record.batch_tokens for record in runs})
    axes.set_yticks(tried, [f"{batch}" if batch < 10_000 else si(batch, 3) for batch in tried])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("Batch (tokens)")
    rate_axis(axes.xaxis, *x)
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap=colors), ax=axes, location="bottom", shrink=0.9, aspect=32
    )
    bar.set_ticks(list(steps), labels=[f"{step:g}" for step in steps])
    bar.set_label("Loss above the best of the cell (%)")
    bar.outline.set_visible(False)


def _steps(largest: float) -> tuple[float, ...]:
    """The steps below the largest excess; of many the finest are left out."""
    used = [step for step in STEPS if step < largest] or [0.0]
    used = used if len(used) > 1 else list(STEPS[:2])
    return (0.0, *used[1:][-(MOST_STEPS - 1) :])


def _draw_bowl(
    axes: Axes,
    optimum: CellOptimum,
    x: tuple[float, float],
    y: tuple[float, float],
    steps: tuple[float, ...],
) -> None:
    bowl = optimum.bowl
    assert bowl is not None
    rates, batches = np.geomspace(*x, 60), np.geomspace(*y, 60)
    loss = np.array([[bowl.loss(rate, batch) for rate in rates] for batch in batches])
    above = 100 * (loss / optimum.loss - 1)
    axes.contour(
        rates, batches, above, levels=list(steps[1:]), colors=[MUTED], linewidths=0.6, zorder=1
    )
    if optimum.status == "inside":
        axes.plot(
            optimum.peak_lr, optimum.batch_tokens, "+", color=FORECAST, markersize=9, zorder=4
        )
        axes.plot(optimum.peak_lr, optimum.batch_tokens, ".", color=INK, markersize=2, zorder=5)
