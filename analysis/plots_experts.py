"""Expert load of every layer as a heat map: at the end of a run, and over its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from analysis.laws import Array
from analysis.plots_balance import NO_EXPERTS
from analysis.plots_evidence import Evidence
from analysis.plots_loss import NO_RUNS
from analysis.plots_style import (
    LOADS,
    MUTED,
    Drawing,
    absent,
    new_figure,
    si,
    style,
    tidy,
)
from analysis.records import RunRecord
from analysis.wording import counted

T = TypeVar("T")

LOAD_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 4.0)
"""Where the colours of a load over the mean load change; above the last is one more colour."""
VIO_STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The same for MaxVio during training: from 0, then as many of the largest in use as colours."""
MOST_ROWS = 36
MOST_RUNGS = 8


def expert_load(evidence: Evidence) -> Drawing:
    """Load over mean load: a row a layer, a column an expert, sorted within the layer."""
    name, title = "expert_load", "Expert load by layer"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    runs = {
        rung: record
        for rung, record in evidence.largest_run_by_rung().items()
        if any(layer.load for layer in record.load_by_layer)
    }
    if not runs:
        return absent(name, title, NO_EXPERTS)
    chosen = _evenly(list(runs.items()), MOST_RUNGS)
    per_run = max(1, MOST_ROWS // len(chosen))
    rows: list[dict[str, Any]] = []
    blocks: list[tuple[RunRecord, list[int], Array]] = []
    for _, record in chosen:
        layers = _evenly([layer for layer in record.load_by_layer if layer.load], per_run)
        width = len(layers[0].load)
        load = np.array([sorted(layer.load, reverse=True) for layer in layers]) * width
        blocks.append((record, [layer.layer for layer in layers], load))
        for layer, values in zip(layers, load, strict=True):
            rows += [
                {
                    "run_id": record.run_id,
                    "rung": record.rung,
                    "layer": layer.layer,
                    "rank": rank,
                    "load_over_mean": value,
                }
                for rank, value in enumerate(values, start=1)
            ]
    count = sum(len(layers) for _, layers, _ in blocks)
    with style():
        figure, (axes,) = new_figure(1.35 + 0.085 * count + 0.06 * len(blocks))
        colors = ListedColormap(list(LOADS))
        mappable = ScalarMappable(BoundaryNorm(LOAD_STEPS, colors.N, extend="max"), colors)
        width = max(load.shape[1] for _, _, load in blocks)
        stacked = [
            (record, layers, np.linspace(0, width, load.shape[1] + 1), load)
            for record, layers, load in blocks
        ]
        _draw_stack(axes, stacked, mappable, right=float(width))
        axes.set_xlim(0, width)
        axes.set_xticks([0.5, width - 0.5], ["busiest", "idlest"])
        color_bar(figure, axes, mappable, LOAD_STEPS, "Load over the mean load of the layer")
    left_out = len(runs) - len(chosen)
    between = counted(left_out, "size between them is", "sizes between them are")
    thinned = f" {between} not drawn." if left_out else ""
    return Drawing(
        name=name,
        title=title,
        how_to_read="Each row is one mixture-of-experts layer of the longest run of a size, each "
        "column one expert, the busiest at the left; measured over the held-out split. The "
        "neutral colour is the mean load, brown is above it, blue below." + thinned,
        distrust="Experts are sorted in every row: a column is a rank and not one expert. The load "
        "depends on the text: held-out text of another kind would look different.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def expert_training(evidence: Evidence) -> Drawing:
    """MaxVio of every layer from the first step to the last, for the longest run of each size."""
    name, title = "expert_training", "Expert overload during training"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    runs = [
        record
        for record in evidence.largest_run_by_rung().values()
        if record.run_id in evidence.curves and evidence.curves[record.run_id].layers
    ]
    if not runs:
        return absent(name, title, NO_EXPERTS)
    chosen = _evenly(runs, MOST_RUNGS)
    per_run = max(1, MOST_ROWS // len(chosen))
    rows: list[dict[str, Any]] = []
    blocks = []
    for record in chosen:
        curve = evidence.curves[record.run_id]
        picked = _evenly(list(range(len(curve.layers))), per_run)
        layers = [curve.layers[index] for index in picked]
        max_vio = curve.max_vio[:, picked].T
        blocks.append((record, layers, curve.tokens / record.tokens, max_vio))
        for layer, values in zip(layers, max_vio, strict=True):
            columns = {"layer": layer, "tokens": curve.tokens, "max_vio": values}
            rows += tidy("training", {"run_id": record.run_id, "rung": record.rung, **columns})
    count = sum(len(layers) for _, layers, _, _ in blocks)
    with style():
        figure, (axes,) = new_figure(1.45 + 0.085 * count + 0.06 * len(blocks))
        colors = ListedColormap(list(LOADS[len(LOADS) // 2 :]))
        largest = max(float(values.max()) for _, _, _, values in blocks)
        steps = _vio_steps(largest, colors.N)
        norm = BoundaryNorm(steps, colors.N, extend="max")
        least = min(float(share[0]) for _, _, share, _ in blocks)
        _draw_stack(
            axes,
            [(record, layers, _edges(share), values) for record, layers, share, values in blocks],
            ScalarMappable(norm=norm, cmap=colors),
            right=1.0,
        )
        axes.set_xscale("log")
        axes.set_xlim(least, 1)
        shares = [s for s in (0.001, 0.01, 0.1, 1.0) if s >= least]
        axes.set_xticks(shares, [f"{share:.3g}" for share in shares])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("Share of the training tokens seen")
        color_bar(figure, axes, ScalarMappable(norm=norm, cmap=colors), steps, "MaxVio of a batch")
    return Drawing(
        name=name,
        title=title,
        how_to_read="Each row is one mixture-of-experts layer of the longest run of a size, from "
        "its first step at the left to its last. The neutral colour is an even load; the browner, "
        "the further the busiest expert lies above the mean. A layer that stays brown to the end "
        "was not balanced in time.",
        distrust="MaxVio of a single batch is noisier and larger than over the held-out split, the "
        "more so the smaller the batch, and the batch grows along the ladder.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def _vio_steps(largest: float, colors: int) -> tuple[float, ...]:
    """0 and the steps below the largest value, as many as there are colours."""
    used = [step for step in VIO_STEPS if step < largest]
    used = used if len(used) >= colors - 1 else list(VIO_STEPS[: colors - 1])
    return (0.0, *used[-(colors - 1) :])


Block = tuple[RunRecord, list[int], Array, Array]
"""A run, its layers, the edges of the columns [C + 1], and the values [layers, C]."""


def _draw_stack(axes: Axes, blocks: list[Block], mappable: ScalarMappable, *, right: float) -> None:
    """One block of rows a size, a gap between them, layers at the left, sizes at the right."""
    top, ticks, names = 0.0, [], []
    norm = mappable.norm
    assert isinstance(norm, BoundaryNorm)
    beside = 1.015 * right if right > 1 else 1.05
    for record, layers, across, values in blocks:
        axes.pcolormesh(
            across,
            top + np.arange(len(layers) + 1),
            values,
            cmap=mappable.cmap,
            norm=norm,
            edgecolors="face",
            antialiased=False,
            linewidth=0.15,
        )
        middle = top + len(layers) / 2
        axes.text(beside, middle, si(record.flops_per_token), va="center", fontsize=6.5)
        step = max(1, len(layers) // 3)
        ticks += [top + i + 0.5 for i in range(0, len(layers), step)]
        names += [str(layers[i]) for i in range(0, len(layers), step)]
        top += len(layers) + 0.7
    axes.set_ylim(top - 0.7, 0)
    axes.set_yticks(ticks, names, fontsize=6)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_ylabel("Layer")
    axes.set_title(
        "size at the right: training FLOPs per token",
        loc="right",
        fontsize=6,
        fontweight="normal",
        color=MUTED,
        pad=2,
    )


def color_bar(
    figure: Figure,
    axes: Axes,
    mappable: ScalarMappable,
    steps: Sequence[float],
    label: str,
) -> None:
    """A bar of colour steps below the panel."""
    bar = figure.colorbar(
        mappable, ax=axes, location="bottom", shrink=0.9, aspect=32, spacing="uniform"
    )
    bar.set_label(label)
    bar.set_ticks(list(steps), labels=[f"{step:g}" for step in steps])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _edges(middles: Array) -> Array:
    """Edges between points of a logarithmic axis; the last one at its end, 1."""
    between = np.sqrt(middles[:-1] * middles[1:])
    return np.concatenate([middles[:1], between, [1.0]])


def _evenly(items: list[T], most: int) -> list[T]:
    if len(items) <= most:
        return items
    if most == 1:
        return items[-1:]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
