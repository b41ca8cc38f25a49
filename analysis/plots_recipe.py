"""Learning rate and batch: the bowl of each cell, its optimum, and how the optima scale."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.hyperparam_laws import against_compute, against_size_and_tokens
from analysis.hyperparams import (
    NEAR_OPTIMAL,
    CellOptimum,
    Setting,
    cell_optima,
    rows_of_cells,
)
from analysis.optima_asked import acts_apart
from analysis.plots_evidence import Evidence, size_legend
from analysis.plots_loss import NO_RUNS
from analysis.plots_recipe_surface import draw_surface
from analysis.plots_style import (
    FORECAST,
    INK,
    Drawing,
    absent,
    count_axis,
    flops_axis,
    light_grid,
    loss_axis,
    new_figure,
    padded,
    rate_axis,
    si,
    style,
    tidy,
)
from analysis.points import points_from_records
from analysis.records import RecordSet, RunRecord
from analysis.results import FitError
from analysis.settings import FitSettings
from analysis.wording import counted, level_text

SETTINGS: dict[Setting, str] = {"peak_lr": "Peak learning rate", "batch_tokens": "Batch (tokens)"}
NOT_VARIED = (
    "This sweep varied neither learning rate nor batch: every run took both from the recipe, so "
    "nothing here says whether the recipe is right. An axis such as "
    "recipe.training.peak_lr_factor=[0.5,1,2] would."
)


@dataclass(frozen=True)
class Cell:
    """Runs of one model on one number of tokens that differ in learning rate or batch."""

    runs: tuple[RunRecord, ...]
    optimum: CellOptimum

    @property
    def rung(self) -> str:
        """The size's name."""
        return self.runs[0].rung

    def varies(self, setting: Setting) -> bool:
        """Whether several values were tried."""
        return len({getattr(record, setting) for record in self.runs}) > 1

    def best(self) -> RunRecord:
        """The run of the lowest loss."""
        return min(self.runs, key=lambda record: record.heldout_nats)


def recipe(evidence: Evidence) -> Drawing:
    """Loss over learning rate and batch with the fitted optima, and these against compute."""
    name, title = "recipe", "Learning rate and batch"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    cells = _cells(evidence)
    if not cells:
        return absent(name, title, NOT_VARIED)
    both = [cell for cell in cells if cell.varies("peak_lr") and cell.varies("batch_tokens")]
    varied: list[Setting] = [s for s in SETTINGS if any(cell.varies(s) for cell in cells)]
    rows = [_row(record) for cell in cells for record in cell.runs]
    rows += [_optimum_row(cell) for cell in cells]
    laws = []
    with style():
        figure, panels = new_figure(2.5 + 1.4 * len(varied), rows=1 + len(varied), first_share=1.8)
        if both:
            cell = max(both, key=lambda cell: (len(cell.runs), cell.runs[0].train_flops))
            draw_surface(figure, panels[0], list(cell.runs), cell.optimum)
            how = (
                f"One cell, {si(cell.runs[0].flops_per_token)} FLOPs per token on "
                f"{si(cell.runs[0].tokens)} tokens: the colour of a square is how far its loss "
                "lies above the best one, lines are the fitted bowl, the cross its lowest point."
            )
        else:
            _draw_lines(panels[0], evidence, cells, varied[0])
            how = (
                "A line is the bowl fitted to one size and token budget, the tick its lowest "
                "point; the ring marks the best run."
            )
        for axes, setting in zip(panels[1:], varied, strict=True):
            found, sentence = _draw_optima(axes, evidence, cells, setting)
            rows += found
            laws.append(sentence)
            axes.set_xlabel("")
        panels[-1].set_xlabel("Training compute (FLOPs)")
        # The squares of a surface have colours of their own, for the loss.
        where = "Lower panels: model" if both else "Model"
        size_legend(figure, evidence, title=f"{where} size, training FLOPs per token")
    return Drawing(
        name=name,
        title=title,
        how_to_read=f"{how} Below, each cell's optimum against compute; a bar spans the learning "
        f"rates within {NEAR_OPTIMAL:.2%} of its least loss. An arrow is an optimum beyond what "
        f"was tried, a cross one that is so in the other setting. {' '.join(laws)}",
        distrust=f"{_edges(cells)}Differences below the noise floor between seeds say nothing.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def _cells(evidence: Evidence) -> list[Cell]:
    """Cells in which learning rate or batch takes several values, cheapest first."""
    groups: dict[tuple[Any, ...], list[RunRecord]] = defaultdict(list)
    for record in evidence.done:
        # A variant of another shape has another rate by the recipe's law: no trial of the rate.
        if record.role in ("grid", "noise"):
            model = record.rung, record.flops_per_token, record.total_params
            groups[*model, record.protocol_fingerprint].append(record)
    found = []
    for runs in groups.values():
        size = np.array([record.flops_per_token for record in runs])
        tokens = np.array([record.tokens for record in runs], dtype=float)
        for rows in rows_of_cells(size, tokens):
            cell = tuple(runs[row] for row in rows)
            if len({(record.peak_lr, record.batch_tokens) for record in cell}) > 1:
                points, _ = points_from_records(RecordSet(records=cell, excluded=()))
                (optimum,) = cell_optima(points)
                found.append(Cell(cell, optimum))
    return sorted(found, key=lambda cell: cell.optimum.flops)


def _row(record: RunRecord) -> dict[str, Any]:
    names = ("run_id", "rung", "tokens", "train_flops", "peak_lr", "batch_tokens", "loss_nats")
    return {"series": "run", **{name: getattr(record, name) for name in names}}


def _optimum_row(cell: Cell) -> dict[str, Any]:
    optimum = cell.optimum
    return {
        "series": f"optimum of a cell: {optimum.status}",
        "rung": cell.rung,
        "tokens": optimum.tokens,
        "train_flops": optimum.flops,
        "peak_lr": optimum.peak_lr,
        "batch_tokens": optimum.batch_tokens,
        "loss_nats": optimum.loss,
        "peak_lr_low": optimum.lr_range[0],
        "peak_lr_high": optimum.lr_range[1],
    }


def _draw_lines(axes: Axes, evidence: Evidence, cells: list[Cell], setting: Setting) -> None:
    for cell in cells:
        color, optimum = evidence.colors[cell.rung], cell.optimum
        x = [getattr(record, setting) for record in cell.runs]
        axes.plot(x, [record.heldout_nats for record in cell.runs], "o", color=color)
        best = cell.best()
        axes.plot(
            getattr(best, setting),
            best.heldout_nats,
            "o",
            color=INK,
            markersize=6.5,
            markerfacecolor="none",
        )
        if optimum.bowl is None:
            continue
        grid = np.geomspace(min(x), max(x), 60)
        at = {"peak_lr": optimum.peak_lr, "batch_tokens": optimum.batch_tokens}
        loss = [optimum.bowl.loss(**{**at, setting: value}) for value in grid]
        axes.plot(grid, loss, color=color, linewidth=0.8)
        if optimum.status == "inside":
            axes.plot(getattr(optimum, setting), optimum.loss, "|", color=INK, markersize=7)
    every = [record for cell in cells for record in cell.runs]
    _setting_axis(axes, "x", setting, [getattr(record, setting) for record in every])
    loss_axis(axes.yaxis, *padded([record.heldout_nats for record in every]))
    light_grid(axes)


def _draw_optima(
    axes: Axes, evidence: Evidence, cells: list[Cell], setting: Setting
) -> tuple[list[dict[str, Any]], str]:
    """Each cell's optimum, and the power law through those that lie inside."""
    shown = [cell for cell in cells if cell.varies(setting) and cell.optimum.bowl is not None]
    ends: list[float] = []
    for cell in shown:
        optimum, color = cell.optimum, evidence.colors[cell.rung]
        value = getattr(optimum, setting)
        ends.append(value)
        if setting == "batch_tokens":
            ends += [record.batch_tokens for record in cell.runs]
        if setting == "peak_lr" and optimum.status == "inside":
            axes.vlines(optimum.flops, *optimum.lr_range, color=color, linewidth=0.9)
            ends += optimum.lr_range
        axes.plot(optimum.flops, value, _marker(cell, setting), color=color, zorder=4)
    settings = evidence.study.settings if evidence.study else FitSettings()
    rows, sentence = _draw_law(axes, [cell.optimum for cell in shown], setting, settings)
    if not ends:
        ends = [getattr(record, setting) for cell in cells for record in cell.runs]
    flops = [record.train_flops for cell in cells for record in cell.runs]
    flops_axis(axes.xaxis, *padded(flops))
    _setting_axis(axes, "y", setting, ends)
    light_grid(axes)
    return rows, sentence


def _marker(cell: Cell, setting: Setting) -> str:
    """A dot inside what was tried, an arrow towards where the optimum lies beyond it."""
    if cell.optimum.status == "inside":
        return "o"
    tried = [getattr(record, setting) for record in cell.runs]
    value = getattr(cell.optimum, setting)
    if value <= min(tried) * (1 + 1e-9):
        return "v"
    return "^" if value >= max(tried) * (1 - 1e-9) else "x"


def _draw_law(
    axes: Axes, optima: list[CellOptimum], setting: Setting, settings: FitSettings
) -> tuple[list[dict[str, Any]], str]:
    what = "learning rate" if setting == "peak_lr" else "batch"
    try:
        fit = against_compute(optima, setting, replace(settings, held={}))
    except FitError as error:
        return [], f"No law for the {what}: {str(error).removeprefix(f'{setting}: ')}."
    inside = [optimum.flops for optimum in optima if optimum.status == "inside"]
    flops = np.geomspace(min(inside), max(inside), 40)
    value, low, high = fit.predict_many(flops, level=settings.level)
    apart = _apart(optima, setting, settings.level)
    dashes = (4, 2) if apart else (None, None)
    axes.plot(flops, value, color=FORECAST, linewidth=1.0, zorder=3, dashes=dashes)
    axes.fill_between(flops, low, high, color=FORECAST, alpha=0.13, linewidth=0, zorder=1)
    a, b = fit.coefficients.values()
    columns = {"train_flops": flops, setting: value, f"{setting}_low": low, f"{setting}_high": high}
    return tidy(f"law of the {what}", columns), (
        f"The line is the law through the optima, {what} = {a.value:.3g}·C^{b.value:.3g} "
        f"(exponent {b.low:.2g} to {b.high:.2g} at {level_text(b.level)}).{apart}"
    )


def _apart(optima: list[CellOptimum], setting: Setting, level: float) -> str:
    """A sentence where compute alone does not say the optimum; empty where it does."""
    try:
        plane = against_size_and_tokens(optima, setting, level)
    except FitError:
        return ""  # the cells do not tell size from tokens
    if not acts_apart(plane, level):
        return ""
    apart, of_size, of_tokens = plane.apart(level), plane.size_exponent, plane.token_exponent
    return (
        " It is dashed because compute alone does not say it: size and tokens act differently, as "
        f"N^{of_size.value:.2f} ({of_size.low:.2f} to {of_size.high:.2f}) and "
        f"D^{of_tokens.value:.2f} ({of_tokens.low:.2f} to {of_tokens.high:.2f}), N the FLOPs per "
        f"token, exponents apart by {apart.low:.2f} to {apart.high:.2f}, all at "
        f"{level_text(level)}. The law of both is fitted by `windtunnel fit law=learning_rate`, "
        "and asked with at.size and at.tokens."
    )


def _setting_axis(axes: Axes, along: str, setting: Setting, values: list[float]) -> None:
    axis = axes.xaxis if along == "x" else axes.yaxis
    low, high = padded(values, 0.1)
    if setting == "peak_lr":
        rate_axis(axis, low, high)
    else:
        count_axis(axis, low, high, SETTINGS[setting])


def _edges(cells: list[Cell]) -> str:
    count = sum(_at_edge(cell) for cell in cells)
    if not count:
        return ""
    return (
        f"In {count} of {counted(len(cells), 'cell', 'cells')} the best run lies at the edge of "
        "what was tried, which makes it a bound and not an optimum: widen the axis. "
    )


def _at_edge(cell: Cell) -> bool:
    settings: list[Setting] = [setting for setting in SETTINGS if cell.varies(setting)]
    best = cell.best()
    return any(
        getattr(best, s) in (min(tried), max(tried))
        for s in settings
        if (tried := [getattr(record, s) for record in cell.runs])
    )
