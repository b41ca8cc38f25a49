"""The surface L(N, D) from above: IsoFLOP curves with their optima, contours with the best path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.lines import Line2D

from analysis.laws import Array, LossSurface
from analysis.plots_evidence import (
    DrawnRun,
    LawEvidence,
    draw_dots,
    no_optimum,
    size_legend,
    sizes_in_units,
    surface_of,
)
from analysis.plots_labels import label_contours
from analysis.plots_loss import NO_FIT, NO_RUNS
from analysis.plots_style import (
    EXCLUDED,
    FORECAST,
    INK,
    MUTED,
    Drawing,
    absent,
    count_axis,
    even_ticks,
    light_grid,
    loss_axis,
    new_figure,
    padded,
    power_of_ten,
    safe_label,
    size_colors,
    style,
    tidy,
)
from analysis.study import Study
from analysis.wording import level_text

SAME_COMPUTE = 0.25
"""Runs whose compute lies within this share of an IsoFLOP curve's are drawn with it."""
SIZE_NAMES = {
    "flops_per_token": "Model size M (training FLOPs per token)",
    "active_params": "Model size N (active parameters)",
    "active_non_embedding_params": "Model size N (active, non-embedding parameters)",
    "total_params": "Model size N (total parameters)",
    "active_params_with_attention": "Model size N (active parameters, and attention)",
    "total_params_with_attention": "Model size N (total parameters, and attention)",
}


def size_label(study: Study) -> str:
    """Of the axis: a count of this program's, or a table's own column."""
    variable = study.points.size_variable
    return SIZE_NAMES.get(variable, f"Model size ({safe_label(variable)})")


def isoflop(evidence: LawEvidence[DrawnRun]) -> Drawing:
    """Loss against size at fixed compute, each curve with its optimum and that one's interval."""
    name, title = "isoflop", "IsoFLOP curves: loss against size at fixed compute"
    study = evidence.study
    if not evidence.done or study is None:
        return absent(name, title, NO_FIT if evidence.done else NO_RUNS)
    law = surface_of(study)
    budgets = _budgets(study)
    rows: list[dict[str, Any]] = []
    sizes = study.points.array("size")
    low, high = padded(sizes, 0.12)
    with style():
        figure, (axes,) = new_figure(2.6)
        handles = []
        for (flops, members), color in zip(budgets, size_colors(len(budgets)), strict=True):
            size = np.geomspace(low, high, 61)
            tokens = flops / (law.flops_per_size_token * size)
            loss = law(size, tokens)
            axes.plot(size, loss, color=color, linewidth=0.9)
            columns = {"train_flops": flops, "size": size, "tokens": tokens, "loss_nats": loss}
            rows += tidy("curve", columns)
            picked = np.array(members, dtype=int)
            points = {c: study.points.array(c)[picked] for c in ("size", "tokens", "loss")}
            axes.plot(points["size"], points["loss"], "o", color=color)
            rows += tidy(
                "run",
                {
                    "label": [study.points.label[i] for i in members],
                    "train_flops": study.points.array("flops")[picked],
                    "size": points["size"],
                    "tokens": points["tokens"],
                    "loss_nats": points["loss"],
                },
            )
            rows += _draw_optimum(axes, study, flops, color, (low, high))
            handles.append(
                Line2D([], [], color=color, marker="o", label=power_of_ten(_round(flops)))
            )
        data = pd.DataFrame(rows)
        shown = data[data["size"].between(low, high) & (data["series"] != "curve")]
        count_axis(axes.xaxis, low, high, size_label(study))
        loss_axis(axes.yaxis, *padded(shown["loss_nats"].to_numpy(dtype=float), 0.2))
        light_grid(axes)
        figure.legend(
            handles=handles,
            title="Training compute, FLOPs",
            title_fontsize=6.5,
            alignment="left",
            loc="outside upper left",
            ncols=len(handles),
            handlelength=0.9,
            handletextpad=0.4,
            columnspacing=0.8,
        )
    return Drawing(
        name=name,
        title=title,
        how_to_read="Along one curve the same compute is split in different ways: small models "
        "on many tokens at the left, large ones on few at the right. The tick is the best size by "
        "the fitted surface, the bar its "
        f"{level_text(study.settings.level)} interval over bootstrap replicates. Dots are runs "
        f"whose compute lies within {SAME_COMPUTE:.0%} of the curve's.",
        distrust=f"{no_optimum(study)}The curves are cuts through one fitted surface, not "
        "parabolas through dots, so an optimum can lie outside the sizes that were tried; an "
        "arrow at the edge marks that.",
        data=sizes_in_units(data, study),
        figure=figure,
    )


def contours(evidence: LawEvidence[DrawnRun]) -> Drawing:
    """Lines of equal loss over size and tokens, with the compute-optimal path."""
    name, title = "contours", "Loss over size and tokens, with the compute-optimal path"
    study = evidence.study
    if not evidence.done or study is None:
        return absent(name, title, NO_FIT if evidence.done else NO_RUNS)
    law, promoted = surface_of(study), evidence.promoted
    size, tokens = study.points.array("size"), study.points.array("tokens")
    marked_size = np.append(size, promoted.size_in(study)) if promoted else size
    marked_tokens = np.append(tokens, promoted.tokens) if promoted else tokens
    (x0, x1), (y0, y1) = padded(marked_size, 0.1), padded(marked_tokens, 0.1)
    rows = tidy(
        "run",
        {
            "label": study.points.label,
            "train_flops": study.points.flops,
            "size": size,
            "tokens": tokens,
            "loss_nats": study.points.loss,
        },
    )
    with style():
        figure, (axes,) = new_figure(3.0)
        drawn, equal = _draw_contours(axes, law, (x0, x1), (y0, y1))
        path = _draw_path(axes, study, (x0, x1), (y0, y1))
        rows += path
        rung = {record.run_id: record.rung for record in evidence.done}
        draw_dots(
            axes,
            evidence,
            {
                label: (n, d, rung.get(label, ""))
                for label, n, d in zip(study.points.label, size, tokens, strict=True)
            },
        )
        level = level_text(study.settings.level)
        handles = [Line2D([], [], color=MUTED, linestyle=":", label="equal compute")]
        if path:
            handles.insert(0, Line2D([], [], color=INK, label=f"best split of compute, {level}"))
        if promoted:
            axes.plot(
                promoted.size_in(study),
                promoted.tokens,
                "D",
                color=FORECAST,
                markersize=5,
                zorder=5,
            )
            handles.append(
                Line2D([], [], linestyle="", marker="D", color=FORECAST, label=promoted.name)
            )
            rows.append(
                {
                    "series": "promoted",
                    "label": promoted.label,
                    "train_flops": promoted.flops,
                    "size": promoted.size_in(study),
                    "tokens": promoted.tokens,
                    "loss_nats": promoted.forecast.value,
                }
            )
        count_axis(axes.xaxis, x0, x1, size_label(study))
        count_axis(axes.yaxis, y0, y1, "Training tokens")
        along_path = np.reshape([[row["size"], row["tokens"]] for row in path], (-1, 2))
        runs = np.column_stack([marked_size, marked_tokens])
        taken = np.vstack([runs, along_path, equal])
        label_contours(axes, drawn, taken, color=MUTED, fontsize=6)
        size_legend(figure, evidence)
        figure.legend(handles=handles, loc="outside lower left", ncols=3, columnspacing=1)
    return Drawing(
        name=name,
        title=title,
        how_to_read="A thin line joins the sizes and token counts that reach one loss, in nats "
        "per token, by the fitted surface. The thick path is the cheapest way down, its band the "
        f"{level} interval over bootstrap replicates; dotted diagonals are equal compute. Dots are "
        "the runs, hollow where held out.",
        distrust=f"{no_optimum(study)}Where the path leaves the cloud of dots, the split between "
        "size and tokens is extrapolated; a wide band there says that another split would cost "
        "about the same.",
        data=sizes_in_units(pd.DataFrame(rows), study),
        figure=figure,
    )


def _budgets(study: Study, most: int = 5) -> list[tuple[float, list[int]]]:
    """Compute levels, each with its points: the budgets that hold three sizes or more.

    Where fewer than two do, levels are spread evenly and take the points that lie near them.
    """
    flops, size = study.points.array("flops"), study.points.array("size")
    rank = np.asarray(study.points.budget)
    groups = [np.flatnonzero(rank == r) for r in np.unique(rank)]
    groups = [group for group in groups if len(set(size[group])) >= 3]
    levels = [float(np.exp(np.mean(np.log(flops[group])))) for group in groups]
    if len(levels) < 2:
        levels = list(np.geomspace(flops.min(), flops.max(), 5))
    if len(levels) > most:
        levels = [levels[round(i * (len(levels) - 1) / (most - 1))] for i in range(most)]
    near = np.abs(np.log(flops[:, None] / np.array(levels)[None, :])) <= np.log1p(SAME_COMPUTE)
    return [(level, list(np.flatnonzero(near[:, i]))) for i, level in enumerate(levels)]


def _draw_optimum(
    axes: Axes, study: Study, flops: float, color: str, edges: tuple[float, float]
) -> list[dict[str, Any]]:
    if no_optimum(study):
        return []
    best = surface_of(study).optimum(flops)
    replicates = [law.optimum(flops).size for law in replicate_surfaces(study)]
    low, high = np.quantile(replicates, tails(study)) if replicates else (best.size, best.size)
    low, high = min(low, best.size), max(high, best.size)
    if edges[0] <= best.size <= edges[1]:
        axes.hlines(best.loss, low, high, color=color, linewidth=2.2, alpha=0.45, zorder=3)
        axes.plot(best.size, best.loss, "|", color=INK, markersize=6, zorder=5)
    else:
        edge, arrow = (edges[0], "<") if best.size < edges[0] else (edges[1], ">")
        k = surface_of(study).flops_per_size_token
        at_edge = float(surface_of(study)(edge, flops / (k * edge)))
        axes.plot(edge, at_edge, arrow, color=INK, markersize=4, clip_on=False, zorder=5)
    row = {
        "series": "optimum",
        "train_flops": flops,
        "size": best.size,
        "tokens": best.tokens,
        "loss_nats": best.loss,
        "size_low": low,
        "size_high": high,
    }
    return [row]


def tails(study: Study) -> tuple[float, float]:
    """The shares of the replicates below an interval's low end and below its high end."""
    tail = (1 - study.settings.level) / 2
    return tail, 1 - tail


def replicate_surfaces(study: Study, most: int = 1000) -> list[LossSurface]:
    """The bootstrap's surfaces, at most ``most`` of them, those without an optimum left out."""
    k = surface_of(study).flops_per_size_token
    laws = []
    for E, A, B, alpha, beta in study.surface.replicates[:most]:
        if min(A, B, alpha, beta) > 0:
            law = LossSurface(E=E, A=A, B=B, alpha=alpha, beta=beta, flops_per_size_token=k)
            laws.append(law)
    return laws


def _draw_contours(
    axes: Axes, law: LossSurface, x: tuple[float, float], y: tuple[float, float]
) -> tuple[ContourSet, Array]:
    """Lines of equal loss, and dotted ones of equal compute with their points (size, tokens)."""
    size, tokens = np.meshgrid(np.geomspace(*x, 80), np.geomspace(*y, 80))
    loss = law(size, tokens)
    levels = even_ticks(float(loss.min()), float(loss.max()), most=14)
    axes.set_xscale("log")
    axes.set_yscale("log")
    drawn = axes.contour(
        size, tokens, loss, levels=levels, colors=[EXCLUDED], linewidths=0.6, zorder=1
    )
    flops = law.compute(size, tokens)
    decades = 10.0 ** np.arange(np.ceil(np.log10(flops.min())), np.log10(flops.max()))
    edge = np.geomspace(*x, 40)
    equal = [np.column_stack([edge, c / (law.flops_per_size_token * edge)]) for c in decades]
    for line in equal:
        axes.plot(*line.T, ":", color=MUTED, linewidth=0.6, zorder=1)
    return drawn, np.reshape(equal, (-1, 2))


def _draw_path(
    axes: Axes, study: Study, x: tuple[float, float], y: tuple[float, float]
) -> list[dict[str, Any]]:
    law = surface_of(study)
    if not law.has_optimum:
        return []
    corners = law.compute(np.array(x), np.array(y))
    flops = np.geomspace(corners[0], corners[1], 49)
    best = law.optimal_size()(flops)
    replicates = [r.optimal_size()(flops) for r in replicate_surfaces(study)]
    low, high = np.quantile(replicates, tails(study), axis=0) if replicates else (best, best)
    k = law.flops_per_size_token
    axes.plot(best, flops / (k * best), color=INK, zorder=3)
    # At one compute the band runs along the diagonal of equal compute; its two edges bound it.
    edge_x = np.concatenate([low, high[::-1]])
    edge_y = np.concatenate([flops / (k * low), (flops / (k * high))[::-1]])
    axes.fill(edge_x, edge_y, color=INK, alpha=0.1, linewidth=0, zorder=2)
    return tidy(
        "optimal path",
        {
            "train_flops": flops,
            "size": best,
            "tokens": flops / (k * best),
            "loss_nats": law(best, flops / (k * best)),
            "size_low": low,
            "size_high": high,
        },
    )


def _round(value: float) -> float:
    return float(f"{value:.2g}")
