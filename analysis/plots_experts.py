"""Expert utilisation: the load of every layer as a heat map, and its evenness against compute."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D

from analysis.plots_evidence import Evidence, size_legend
from analysis.plots_loss import NO_RUNS
from analysis.plots_style import (
    LOADS,
    MUTED,
    Drawing,
    absent,
    flops_axis,
    light_grid,
    new_figure,
    padded,
    si,
    style,
)
from analysis.records import RunRecord

T = TypeVar("T")

LOAD_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 4.0)
"""Where the colours of a load over the mean load change; above the last is one more colour."""
MOST_ROWS = 36
MOST_RUNGS = 8
NO_EXPERTS = "These runs have no routed experts, or their records hold no load."


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
    blocks: list[tuple[RunRecord, list[int], np.ndarray]] = []
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
        mappable = _draw_blocks(axes, blocks)
        bar = figure.colorbar(
            mappable, ax=axes, location="bottom", shrink=0.9, aspect=32, spacing="uniform"
        )
        bar.set_label("Load over the mean load of the layer")
        bar.set_ticks(list(LOAD_STEPS), labels=[f"{step:g}" for step in LOAD_STEPS])
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    left_out = len(runs) - len(chosen)
    thinned = f" {left_out} sizes between them are not drawn." if left_out else ""
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


def expert_balance(evidence: Evidence) -> Drawing:
    """MaxVio and normalised entropy of the load, against training compute."""
    name, title = "expert_balance", "Evenness of the expert load against compute"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    runs = [record for record in evidence.done if record.load_by_layer]
    if not runs:
        return absent(name, title, NO_EXPERTS)
    rows = [_balance_row(record) for record in runs]
    with style():
        figure, (upper, lower) = new_figure(3.6, rows=2)
        for record, row in zip(runs, rows, strict=True):
            color, flops = evidence.colors[record.rung], record.train_flops
            upper.vlines(flops, row["max_vio_min"], row["max_vio_max"], color=color, linewidth=0.8)
            upper.plot(flops, row["max_vio_mean"], "o", color=color)
            lower.vlines(flops, row["entropy_min"], row["entropy_max"], color=color, linewidth=0.8)
            lower.plot(flops, row["entropy_mean"], "o", color=color)
        low, high = padded([record.train_flops for record in runs], 0.05)
        for axes in (upper, lower):
            flops_axis(axes.xaxis, low, high)
            light_grid(axes)
        upper.set_xlabel("")
        upper.set_ylim(bottom=0)
        upper.set_ylabel("MaxVio")
        lower.set_ylabel("Normalised entropy")
        lower.axhline(1, color=MUTED, linewidth=0.6, linestyle=":")
        size_legend(figure, evidence)
        figure.legend(
            handles=[
                Line2D([], [], linestyle="", marker="o", color=MUTED, label="mean over layers"),
                Line2D([], [], color=MUTED, label="lowest to highest layer"),
            ],
            loc="outside lower left",
            ncols=2,
        )
    dead = max(row["dead_frac_max"] for row in rows)
    unused = (
        f"In the worst layer {dead:.1%} of the experts were never chosen."
        if dead
        else "Every expert of every layer was chosen at least once."
    )
    return Drawing(
        name=name,
        title=title,
        how_to_read="MaxVio is how far the busiest expert lies above the mean load (0 is even), "
        "the normalised entropy is the share of experts that the load amounts to (1 is even). "
        + unused,
        distrust="MaxVio is a maximum, so it grows with the number of experts and with fewer "
        "held-out tokens. No law is fitted to it here; the trend is for the eye.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def _draw_blocks(
    axes: Axes, blocks: list[tuple[RunRecord, list[int], np.ndarray]]
) -> ScalarMappable:
    """One block of rows a size, a gap between them, the layer numbers at the left."""
    norm = BoundaryNorm(LOAD_STEPS, len(LOADS), extend="max")
    colors = ListedColormap(list(LOADS))
    top, ticks, names = 0.0, [], []
    width = max(load.shape[1] for _, _, load in blocks)
    for record, layers, load in blocks:
        across = np.linspace(0, width, load.shape[1] + 1)
        down = top + np.arange(len(layers) + 1)
        axes.pcolormesh(
            across, down, load, cmap=colors, norm=norm, edgecolors="face", linewidth=0.15
        )
        axes.text(
            width * 1.015,
            top + len(layers) / 2,
            si(record.flops_per_token),
            va="center",
            fontsize=6.5,
        )
        step = max(1, len(layers) // 3)
        ticks += [top + i + 0.5 for i in range(0, len(layers), step)]
        names += [str(layers[i]) for i in range(0, len(layers), step)]
        top += len(layers) + 0.7
    axes.set_ylim(top - 0.7, 0)
    axes.set_xlim(0, width)
    axes.set_yticks(ticks, names, fontsize=6)
    axes.set_xticks([0.5, width - 0.5], ["busiest", "idlest"])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_ylabel("Layer")
    axes.text(width * 1.015, -0.4, "FLOPs/token", fontsize=5.5, va="bottom", color=MUTED)
    return ScalarMappable(norm=norm, cmap=colors)


def _balance_row(record: RunRecord) -> dict[str, Any]:
    max_vio = [layer.max_vio for layer in record.load_by_layer]
    entropy = [layer.normalized_entropy for layer in record.load_by_layer]
    dead = [layer.dead_frac for layer in record.load_by_layer]
    return {
        "run_id": record.run_id,
        "rung": record.rung,
        "train_flops": record.train_flops,
        "max_vio_mean": float(np.mean(max_vio)),
        "max_vio_min": min(max_vio),
        "max_vio_max": max(max_vio),
        "entropy_mean": float(np.mean(entropy)),
        "entropy_min": min(entropy),
        "entropy_max": max(entropy),
        "dead_frac_max": max(dead),
    }


def _evenly(items: list[T], most: int) -> list[T]:
    if len(items) <= most:
        return items
    if most == 1:
        return items[-1:]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
