"""The runs themselves: their training curves, and how far each lies from the law."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.noise import central_deviations
from analysis.plots_evidence import (
    DrawnRun,
    Evidence,
    LawEvidence,
    OnTheWay,
    size_legend,
    surface_of,
)
from analysis.plots_loss import NO_FIT, NO_RUNS
from analysis.plots_style import (
    EXCLUDED,
    FORECAST,
    INK,
    MUTED,
    PAPER,
    Drawing,
    absent,
    count_axis,
    flops_axis,
    light_grid,
    loss_axis,
    new_figure,
    padded,
    si,
    style,
    tidy,
)
from analysis.wording import counted, level_text


def training_curves(evidence: Evidence) -> Drawing:
    """Training loss against tokens, each run to its own end, with its final held-out loss."""
    name, title = "training_curves", "Training curves"
    runs = [record for record in evidence.done if record.run_id in evidence.curves]
    if not runs:
        why = "No run has logged its training loss." if evidence.done else NO_RUNS
        return absent(name, title, why)
    drawn = {record.run_id for record in evidence.with_curves()}
    runs = [record for record in runs if record.run_id in drawn]
    rows: list[dict[str, Any]] = []
    with style():
        figure, (axes,) = new_figure(2.6)
        for record in runs:
            curve, color = evidence.curves[record.run_id], evidence.colors[record.rung]
            axes.plot(curve.tokens, curve.loss, color=color, linewidth=0.6, alpha=0.85)
            axes.plot(
                record.tokens, record.heldout_nats, "o", color=color, markersize=2.8, zorder=4
            )
            where = {"run_id": record.run_id, "rung": record.rung}
            rows += [
                {**where, "series": "training loss", "tokens": t, "loss_nats": loss}
                for t, loss in zip(curve.tokens, curve.loss, strict=True)
            ]
            end = {"tokens": record.tokens, "loss_nats": record.heldout_nats}
            rows.append({**where, "series": "held-out loss", **end})
        data = pd.DataFrame(rows)
        count_axis(axes.xaxis, *padded(data["tokens"].to_numpy(), 0.03), "Training tokens")
        loss_axis(axes.yaxis, *padded(data["loss_nats"].to_numpy(), 0.04))
        light_grid(axes)
        size_legend(figure, evidence)
    which = (
        f"Of {len(evidence.done)} runs the longest of each size is drawn. "
        if len(drawn) < len(evidence.done)
        else "Every run is drawn. "
    )
    return Drawing(
        name=name,
        title=title,
        how_to_read=which + "A line is the training loss, averaged over bins of equal width in log "
        "tokens; the dot at its end is the loss on held-out text that the law is fitted to. The "
        "drop at the end of each line is the decay of the learning rate.",
        distrust="Training and held-out loss are measured on different text and need not meet. "
        "A spike, a flat stretch or a line that rises is a reason to leave that run out.",
        data=data,
        figure=figure,
    )


def flight(evidence: Evidence) -> Drawing:
    """The promoted run from its first token to its last, against what was forecast for it."""
    name, title = "flight", "The promoted run against its forecast"
    promoted = evidence.promoted
    if promoted is None:
        return absent(name, title, "Nothing has been promoted from this sweep yet.")
    end = OnTheWay(tokens=promoted.tokens, forecast=promoted.forecast, measured=promoted.measured)
    points, curve = [*promoted.waypoints, end], promoted.curve
    level = level_text(*(point.forecast.level for point in points))
    rows = [
        {
            "series": "end" if point is end else "on the way",
            "tokens": point.tokens,
            "forecast_nats": point.forecast.value,
            "forecast_nats_low": point.forecast.low,
            "forecast_nats_high": point.forecast.high,
            "loss_nats": point.measured,
        }
        for point in points
    ]
    forecast = pd.DataFrame(rows)
    with style():
        figure, (axes,) = new_figure(2.5)
        axes.errorbar(
            forecast["tokens"],
            forecast["forecast_nats"],
            yerr=[
                forecast["forecast_nats"] - forecast["forecast_nats_low"],
                forecast["forecast_nats_high"] - forecast["forecast_nats"],
            ],
            color=FORECAST,
            linestyle="",
            linewidth=1.6,
            capsize=4,
            marker="_",
            markersize=5,
            zorder=4,
        )
        shown = [
            *forecast["forecast_nats_low"],
            *forecast["forecast_nats_high"],
            *forecast["loss_nats"].dropna(),
        ]
        handles = [
            Line2D([], [], linestyle="", marker="|", color=FORECAST, label=f"forecast, {level}")
        ]
        if curve is not None:
            late = curve.tokens >= 0.4 * points[0].tokens
            axes.plot(curve.tokens[late], curve.loss[late], color=EXCLUDED, linewidth=0.8)
            shown += list(curve.loss[late])
            handles.append(Line2D([], [], color=EXCLUDED, label="training loss"))
            rows += tidy("training loss", {"tokens": curve.tokens, "loss_nats": curve.loss})
        if forecast["loss_nats"].notna().any():
            axes.plot(forecast["tokens"], forecast["loss_nats"], "D", color=INK, markersize=3.6)
            handles.append(
                Line2D([], [], linestyle="", marker="D", color=INK, label="held-out loss")
            )
        span = [*forecast["tokens"], 0.4 * points[0].tokens]
        axes.set_xlim(min(span) * 0.95, max(span) * 1.05)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
        axes.set_xlabel("Training tokens")
        loss_axis(axes.yaxis, *padded(np.array(shown), 0.06))
        light_grid(axes)
        figure.legend(handles=handles, loc="outside lower left", ncols=3, columnspacing=1)
    passed = [point for point in points if point.measured is not None]
    inside = sum(point.forecast.contains(point.measured or 0.0) for point in passed)
    so_far = (
        f"So far the interval holds {inside} of "
        f"{counted(len(passed), 'measurement', 'measurements')}. "
        if passed
        else "The run diverged and has no final loss. "
        if promoted.diverged
        else "Nothing has been measured yet. "
    )
    on_the_way = "" if promoted.waypoints else "Only the end was forecast. "
    return Drawing(
        name=name,
        title=title,
        how_to_read=f"Bars are the {level} intervals written down before the run began, diamonds "
        f"what it measured on held-out text. {on_the_way}{so_far}The line is its training loss.",
        distrust="Evaluations on the way use fewer held-out tokens than the last one. Their "
        "forecasts come from the same runs, so they miss together and don't count as "
        "independent hits.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def residuals(evidence: LawEvidence[DrawnRun]) -> Drawing:
    """Measured over law minus one, in percent, against compute, with the noise floor."""
    name, title = "residuals", "Residuals and the noise floor"
    study = evidence.study
    if not evidence.done or study is None:
        return absent(name, title, NO_FIT if evidence.done else NO_RUNS)
    points = study.points
    values = surface_of(study)(points.array("size"), points.array("tokens"))
    off = 100 * (points.array("loss") / values - 1)
    noise = study.noise.sd if study.noise else study.surface.noise_sd
    rows: list[dict[str, Any]] = []
    with style():
        figure, (axes,) = new_figure(2.5)
        half = 100 * central_deviations(study.settings.level) * noise
        axes.axhspan(-half, half, color=INK, alpha=0.08, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8)
        for held_out, series in ((False, "fitted"), (True, "held out")):
            if held_out:
                places = {
                    point.label: (
                        point.flops,
                        100 * (point.measured / point.forecast.value - 1),
                    )
                    for point in (evidence.holdout.points if evidence.holdout else ())
                }
            else:
                places = dict(
                    zip(points.label, zip(points.flops, off.tolist(), strict=True), strict=True)
                )
            _draw_residuals(axes, evidence, places, hollow=held_out)
            rows += [_residual_row(series, label, *place) for label, place in places.items()]
        flops_axis(axes.xaxis, *padded(points.flops, 0.05))
        reach = 1.1 * max(half, *(abs(row["residual_percent"]) for row in rows))
        axes.set_ylim(-reach, reach)
        axes.set_ylabel("Measured over law, minus 1 (%)")
        light_grid(axes)
        size_legend(figure, evidence)
        handles = [_dot(MUTED, "fitted")]
        if evidence.holdout:
            handles.append(_dot(PAPER, "held out: against the forecast from the rest"))
        figure.legend(handles=handles, loc="outside lower left", ncols=2, columnspacing=1)
    band = (
        f"The grey band holds {level_text(study.settings.level)} of the scatter of repeated seeds "
        f"({study.noise.sd:.2%} standard deviation, "
        f"{counted(study.noise.degrees_of_freedom, 'degree', 'degrees')} of freedom). "
        if study.noise
        else "No cell was repeated with other seeds, so the grey band is the fit's own scatter "
        f"({noise:.2%} standard deviation) and can't show that the law is too coarse. "
    )
    return Drawing(
        name=name,
        title=title,
        how_to_read="How far each run lies from the law, in percent of the loss. "
        + band
        + "Filled "
        "dots helped to fit the law; hollow ones are the runs of the largest budgets against what "
        "the others forecast for them.",
        distrust="A trend along compute, or a size that lies on one side, says that the law's form "
        "is wrong there, however narrow its intervals are.",
        data=pd.DataFrame(rows),
        figure=figure,
    )


def _draw_residuals(
    axes: Axes,
    evidence: LawEvidence[DrawnRun],
    places: dict[str, tuple[float, float]],
    *,
    hollow: bool,
) -> None:
    rung = {record.run_id: record.rung for record in evidence.done}
    by_color: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for label, place in places.items():
        by_color[evidence.colors.get(rung.get(label, ""), MUTED)].append(place)
    for color, dots in by_color.items():
        x, y = zip(*dots, strict=True)
        face = PAPER if hollow else color
        axes.plot(x, y, "o", color=color, markerfacecolor=face, zorder=5 if hollow else 4)


def _residual_row(series: str, label: str, flops: float, percent: float) -> dict[str, Any]:
    return {
        "series": series,
        "run_id": label,
        "train_flops": flops,
        "residual_percent": float(np.float64(percent)),
    }


def _dot(face: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", color=MUTED, markerfacecolor=face, label=label)
