"""Evenness of the expert load against compute: MaxVio and normalised entropy with their laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.load_laws import band, law_text, load_law
from analysis.plots_evidence import Evidence, Promoted, size_legend
from analysis.plots_loss import NO_RUNS
from analysis.plots_promoted import draw_promoted
from analysis.plots_style import (
    FORECAST,
    INK,
    MUTED,
    Drawing,
    absent,
    flops_axis,
    light_grid,
    new_figure,
    padded,
    style,
    tidy,
)
from analysis.records import RunRecord
from analysis.results import FitError
from analysis.settings import FitSettings
from analysis.wording import level_text

NO_EXPERTS = "These runs have no routed experts, or nothing was recorded about their load."
Measure = Literal["max_vio", "normalized_entropy"]
WORDS: dict[Measure, str] = {"max_vio": "MaxVio", "normalized_entropy": "Normalised entropy"}


def expert_balance(evidence: Evidence) -> Drawing:
    """MaxVio and normalised entropy of the load, against training compute."""
    name, title = "expert_balance", "Evenness of the expert load against compute"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    runs = [record for record in evidence.done if record.load_by_layer]
    if not runs:
        return absent(name, title, NO_EXPERTS)
    rows = []
    laws = []
    level = level_text(_settings(evidence).level)
    reach = [record.train_flops for record in runs]
    promoted = evidence.promoted if evidence.promoted and evidence.promoted.loads else None
    if promoted is not None:
        reach.append(promoted.flops)
    with style():
        figure, panels = new_figure(3.6, rows=2)
        for axes, (measure, words) in zip(panels, WORDS.items(), strict=True):
            rows += draw_layers(axes, evidence, runs, measure)
            found, sentence = _draw_law(axes, evidence, runs, measure, max(reach))
            rows += found
            laws.append(f"{words}: {sentence}.")
            if promoted is not None:
                rows += _draw_load_forecast(axes, promoted, measure)
            flops_axis(axes.xaxis, *padded(reach, 0.05))
            light_grid(axes)
            axes.set_ylabel(words)
        upper, lower = panels
        upper.set_xlabel("")
        upper.set_ylim(bottom=0)
        lower.axhline(1, color=MUTED, linewidth=0.6, linestyle=":")
        size_legend(figure, evidence)
        figure.legend(
            handles=_keys(rows, level), loc="outside lower left", ncols=3, columnspacing=0.9
        )
    dead = max(layer.dead_frac for record in runs for layer in record.load_by_layer)
    unused = (
        f"In the worst layer {dead:.1%} of the experts were never chosen."
        if dead
        else "Every expert of every layer was chosen at least once."
    )
    drawn = (
        f"The grey line is a power law of compute with its {level} band for one new run. "
        if any(row["series"] == "law" for row in rows)
        else ""
    )
    return Drawing(
        name=name,
        title=title,
        how_to_read="MaxVio is how far the busiest expert lies above the mean load (0 is even), "
        "the normalised entropy is the share of experts that the load amounts to (1 is even). "
        f"{unused} {drawn}"
        f"{' '.join(laws)}",
        distrust="MaxVio is a maximum, so it grows with the number of experts and with fewer "
        "held-out tokens. A plain power law is all that so few runs can carry.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def draw_layers(
    axes: Axes, evidence: Evidence, runs: list[RunRecord], measure: str
) -> list[dict[str, Any]]:
    """A dot a run, the mean over its layers, on a line from the lowest layer to the highest."""
    rows: list[dict[str, Any]] = []
    for rung, color in evidence.colors.items():
        found = [_layer_row(record, measure) for record in runs if record.rung == rung]
        own = [row for row in found if row is not None]
        if not own:
            continue
        table = pd.DataFrame(own)
        # Repeats lie on one line: drawn once, from the lowest of all to the highest.
        spans = table.groupby("train_flops").agg({"lowest": "min", "highest": "max"})
        axes.vlines(spans.index, spans["lowest"], spans["highest"], color=color, lw=0.8)
        axes.plot(table["train_flops"], table["mean"], "o", color=color)
        rows += own
    return rows


def _layer_row(record: RunRecord, measure: str) -> dict[str, Any] | None:
    """None for a record written before ``measure`` was taken."""
    found = [getattr(layer, measure) for layer in record.load_by_layer]
    values = [value for value in found if value is not None]
    if not values:
        return None
    return {
        "series": "run",
        "measure": measure,
        "run_id": record.run_id,
        "rung": record.rung,
        "train_flops": record.train_flops,
        "mean": float(np.mean(values)),
        "lowest": min(values),
        "highest": max(values),
    }


def _draw_law(
    axes: Axes, evidence: Evidence, runs: list[RunRecord], measure: Measure, far: float
) -> tuple[list[dict[str, Any]], str]:
    """The law through the fitted runs, as far as the promoted one; and in words."""
    fitted = [record for record in runs if record.run_id in evidence.fitted] or runs
    settings = _settings(evidence)
    try:
        fit = load_law(fitted, measure, settings)
    except FitError as error:
        return [], f"no law ({error})"
    measured = max(record.train_flops for record in fitted)
    nearest = min(record.train_flops for record in fitted)
    flops = np.unique(np.append(np.geomspace(nearest, max(far, measured), 60), measured))
    value, low, high = band(fit, measure, flops, settings.level)
    inside = flops <= measured
    axes.plot(flops[inside], value[inside], color=INK, linewidth=0.9, zorder=1)
    axes.plot(flops[~inside], value[~inside], color=INK, dashes=(4, 2), linewidth=0.9, zorder=1)
    axes.fill_between(flops, low, high, color=INK, alpha=0.1, linewidth=0, zorder=0)
    columns = {"measure": measure, "train_flops": flops, "mean": value, "low": low, "high": high}
    b = list(fit.coefficients.values())[-1]
    return tidy("law", columns), (f"{law_text(fit, measure)}, exponent {b.low:.2g} to {b.high:.2g}")


def _settings(evidence: Evidence) -> FitSettings:
    """Of the fit; what it holds of the loss's law is of no other."""
    return replace(evidence.study.settings, held={}) if evidence.study else FitSettings()


def _draw_load_forecast(axes: Axes, promoted: Promoted, measure: str) -> list[dict[str, Any]]:
    """The promotion's forecast of one measure, and what its run then had."""
    if measure not in promoted.loads:
        return []
    forecast, measured = promoted.loads[measure]
    draw_promoted(axes, promoted.flops, forecast, measured)
    where = {"measure": measure, "run_id": promoted.label, "train_flops": promoted.flops}
    ends = {"mean": forecast.value, "low": forecast.low, "high": forecast.high}
    rows = [{"series": "forecast", **where, **ends}]
    if measured is not None:
        rows.append({"series": "measured", **where, "mean": measured})
    return rows


def _keys(rows: list[dict[str, Any]], level: str) -> list[Line2D]:
    drawn = {row["series"] for row in rows}
    handles = [
        _key("o", MUTED, "mean over layers"),
        Line2D([], [], color=MUTED, label="lowest to highest"),
    ]
    if "law" in drawn:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, label=f"law, {level} band"))
    if "forecast" in drawn:
        handles.append(_key("|", FORECAST, "forecast"))
    if "measured" in drawn:
        handles.append(_key("D", INK, "promoted run"))
    return handles


def _key(marker: str, color: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=color, label=label)
