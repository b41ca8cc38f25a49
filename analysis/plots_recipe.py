"""Learning rate and batch: what a sweep over them measured, cell by cell."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from analysis.plots_evidence import Evidence, size_legend
from analysis.plots_loss import NO_RUNS
from analysis.plots_style import (
    FORECAST,
    INK,
    LINE,
    PAPER,
    SIZES,
    Drawing,
    absent,
    count_axis,
    even_ticks,
    light_grid,
    log_ticks,
    loss_axis,
    new_figure,
    padded,
    si,
    style,
)
from analysis.records import RunRecord

Cell = tuple[str, int]
"""Rung and tokens."""
EXCESS_STEPS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Loss above the best of the cell, in percent, where the colours change."""
NOT_VARIED = (
    "This sweep varied neither learning rate nor batch: every run took both from the recipe, so "
    "nothing here says whether the recipe is right. An axis such as "
    "recipe.training.peak_lr_factor=[0.5,1,2] would."
)


def recipe(evidence: Evidence) -> Drawing:
    """Loss against learning rate, and over learning rate and batch where both were varied."""
    name, title = "recipe", "Learning rate and batch"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    cells = _varied_cells(evidence)
    if not cells:
        return absent(name, title, NOT_VARIED)
    rows = [_row(record) for runs in cells.values() for record in runs]
    both = [
        runs
        for runs in cells.values()
        if _varies(runs, "peak_lr") and _varies(runs, "batch_tokens")
    ]
    with style():
        if both:
            figure, (axes,) = new_figure(2.9)
            cell = max(both, key=lambda runs: (len(runs), runs[0].train_flops))
            _draw_surface(figure, axes, cell)
            how = (
                f"One cell, {si(cell[0].flops_per_token)} FLOPs per token on {si(cell[0].tokens)} "
                "tokens: the colour of a square is how far its loss lies above the best one. The "
                "ringed square is the best that was tried."
            )
            edge = _surface_edge(cell)
        else:
            axis = (
                "peak_lr" if any(_varies(r, "peak_lr") for r in cells.values()) else "batch_tokens"
            )
            figure, (axes,) = new_figure(2.6)
            _draw_lines(axes, evidence, cells, axis)
            size_legend(figure, evidence)
            how = "Each line is one size and token budget; the ring marks the best that was tried."
            edge = any(_line_edge(runs, axis) for runs in cells.values())
    return Drawing(
        name=name,
        title=title,
        how_to_read=how,
        distrust=(
            "A best value lies at the edge of what was tried, so it is a bound and not an optimum: "
            "widen the axis. "
            if edge
            else ""
        )
        + "Differences below the noise floor between seeds say nothing.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def _varied_cells(evidence: Evidence) -> dict[Cell, list[RunRecord]]:
    """Cells of equal size and tokens in which learning rate or batch takes several values."""
    cells: dict[Cell, list[RunRecord]] = defaultdict(list)
    for record in evidence.done:
        cells[record.rung, record.tokens].append(record)
    return {
        cell: runs
        for cell, runs in cells.items()
        if _varies(runs, "peak_lr") or _varies(runs, "batch_tokens")
    }


def _varies(runs: list[RunRecord], name: str) -> bool:
    return len({getattr(record, name) for record in runs}) > 1


def _row(record: RunRecord) -> dict[str, Any]:
    names = ("run_id", "rung", "tokens", "train_flops", "peak_lr", "batch_tokens", "loss_nats")
    return {name: getattr(record, name) for name in names}


def _draw_lines(
    axes: Axes, evidence: Evidence, cells: dict[Cell, list[RunRecord]], axis: str
) -> None:
    for (rung, _), runs in cells.items():
        ordered = sorted(runs, key=lambda record: getattr(record, axis))
        x = [getattr(record, axis) for record in ordered]
        loss = [record.heldout_nats for record in ordered]
        color = evidence.colors[rung]
        axes.plot(x, loss, "-o", color=color, linewidth=0.8)
        best = int(np.argmin(loss))
        axes.plot(x[best], loss[best], "o", color=INK, markersize=6.5, markerfacecolor="none")
    every = [record for runs in cells.values() for record in runs]
    low, high = padded([getattr(record, axis) for record in every])
    if axis == "peak_lr":
        _lr_axis(axes, low, high)
    else:
        count_axis(axes.xaxis, low, high, "Batch (tokens)")
    loss_axis(axes.yaxis, *padded([record.heldout_nats for record in every]))
    light_grid(axes)


def _draw_surface(figure: Figure, axes: Axes, runs: list[RunRecord]) -> None:
    best = min(runs, key=lambda record: record.heldout_nats)
    norm = BoundaryNorm(EXCESS_STEPS, len(EXCESS_STEPS), extend="max")
    colors = ListedColormap([*SIZES[::-2][: len(EXCESS_STEPS) - 1], LINE])
    excess = [100 * (record.heldout_nats / best.heldout_nats - 1) for record in runs]
    axes.scatter(
        [record.peak_lr for record in runs],
        [record.batch_tokens for record in runs],
        c=excess,
        cmap=colors,
        norm=norm,
        marker="s",
        s=120,
    )
    axes.plot(
        best.peak_lr, best.batch_tokens, "o", color=FORECAST, markersize=6, markerfacecolor=PAPER
    )
    count_axis(axes.yaxis, *padded([r.batch_tokens for r in runs], 0.12), label="Batch (tokens)")
    _lr_axis(axes, *padded([r.peak_lr for r in runs], 0.12))
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap=colors), ax=axes, location="bottom", shrink=0.9, aspect=32
    )
    bar.set_ticks(list(EXCESS_STEPS), labels=[f"{step:g}" for step in EXCESS_STEPS])
    bar.set_label("Loss above the best of the cell (%)")
    bar.outline.set_visible(False)


def _lr_axis(axes: Axes, low: float, high: float) -> None:
    count_axis(axes.xaxis, low, high, "Peak learning rate")
    ticks = log_ticks(low, high)
    ticks = ticks if len(ticks) > 1 else even_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _line_edge(runs: list[RunRecord], axis: str) -> bool:
    values = sorted({getattr(record, axis) for record in runs})
    best = min(runs, key=lambda record: record.heldout_nats)
    return len(values) > 1 and getattr(best, axis) in (values[0], values[-1])


def _surface_edge(runs: list[RunRecord]) -> bool:
    return _line_edge(runs, "peak_lr") or _line_edge(runs, "batch_tokens")
