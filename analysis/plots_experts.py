"""Expert utilisation: the load of every layer as a heat map, and its evenness against compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.laws import Array
from analysis.plots_evidence import Evidence, Promoted, size_legend
from analysis.plots_loss import NO_RUNS
from analysis.plots_style import (
    FORECAST,
    INK,
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
    tidy,
)
from analysis.records import RunRecord

T = TypeVar("T")

LOAD_STEPS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 4.0)
"""Where the colours of a load over the mean load change; above the last is one more colour."""
VIO_STEPS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""The same for MaxVio during training."""
MOST_ROWS = 36
MOST_RUNGS = 8
NO_EXPERTS = "These runs have no routed experts, or nothing was recorded about their load."


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
        _bar(figure, axes, mappable, LOAD_STEPS, "Load over the mean load of the layer")
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
        norm = BoundaryNorm(VIO_STEPS, colors.N, extend="max")
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
        _bar(figure, axes, ScalarMappable(norm=norm, cmap=colors), VIO_STEPS, "MaxVio of one batch")
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
        for rung, color in evidence.colors.items():
            own = pd.DataFrame([row for row in rows if row["rung"] == rung])
            if own.empty:
                continue
            for axes, measure in ((upper, "max_vio"), (lower, "entropy")):
                ends = own[f"{measure}_min"], own[f"{measure}_max"]
                axes.vlines(own["train_flops"], *ends, color=color, linewidth=0.8)
                axes.plot(own["train_flops"], own[f"{measure}_mean"], "o", color=color)
        marked = [record.train_flops for record in runs]
        if evidence.promoted is not None and evidence.promoted.loads:
            marked.append(evidence.promoted.flops)
            for axes, measure in ((upper, "max_vio"), (lower, "normalized_entropy")):
                rows += _draw_load_forecast(axes, evidence.promoted, measure)
        low, high = padded(marked, 0.05)
        for axes in (upper, lower):
            flops_axis(axes.xaxis, low, high)
            light_grid(axes)
        upper.set_xlabel("")
        upper.set_ylim(bottom=0)
        upper.set_ylabel("MaxVio")
        lower.set_ylabel("Normalised entropy")
        lower.axhline(1, color=MUTED, linewidth=0.6, linestyle=":")
        size_legend(figure, evidence)
        handles = [
            _key("o", MUTED, "mean over layers"),
            Line2D([], [], color=MUTED, label="lowest to highest"),
        ]
        if len(marked) > len(runs):
            handles.append(_key("|", FORECAST, "forecast"))
            if any(row.get("measured") is not None for row in rows):
                handles.append(_key("D", INK, "promoted run"))
        figure.legend(handles=handles, loc="outside lower left", ncols=4, columnspacing=0.9)
    dead = max(layer.dead_frac for record in runs for layer in record.load_by_layer)
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
        "held-out tokens. The promotion's forecast is a plain power law of compute.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


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
    axes.text(beside, -0.4, "FLOPs/token", fontsize=5.5, va="bottom", color=MUTED)


def _bar(
    figure: Figure,
    axes: Axes,
    mappable: ScalarMappable,
    steps: Sequence[float],
    label: str,
) -> None:
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


def _key(marker: str, color: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=color, label=label)


def _draw_load_forecast(axes: Axes, promoted: Promoted, measure: str) -> list[dict[str, Any]]:
    """The promotion's forecast of one measure, and what its run then had."""
    if measure not in promoted.loads:
        return []
    forecast, measured = promoted.loads[measure]
    axes.errorbar(
        promoted.flops,
        forecast.value,
        yerr=[[forecast.value - forecast.low], [forecast.high - forecast.value]],
        color=FORECAST,
        linewidth=1.6,
        capsize=4,
        marker="_",
        markersize=5,
    )
    if measured is not None:
        axes.plot(promoted.flops, measured, "D", color=INK, markersize=3.6)
    return [
        {
            "run_id": promoted.label,
            "rung": "promoted",
            "train_flops": promoted.flops,
            "measure": measure,
            "forecast": forecast.value,
            "low": forecast.low,
            "high": forecast.high,
            "measured": measured,
        }
    ]


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
