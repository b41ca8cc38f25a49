"""Loss against compute and against tokens: every run, the law, what was held out, the forecast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.laws import Array
from analysis.plots_evidence import (
    PALE,
    DrawnRun,
    LawEvidence,
    Promoted,
    draw_dots,
    no_optimum,
    size_legend,
    sizes_in_units,
    surface_of,
)
from analysis.plots_promoted import draw_promoted
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
    style,
    tidy,
)
from analysis.study import Study
from analysis.wording import level_text

NO_RUNS = "No run has finished yet, so there is nothing to draw."
NO_FIT = "No law has been fitted to this sweep yet; `windtunnel fit` makes one."


def loss_compute(evidence: LawEvidence[DrawnRun]) -> Drawing:
    """Every run's loss against its compute, with the law along the optimum and its band."""
    name, title = "loss_compute", "Loss against training compute"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    rows = _run_rows(evidence)
    with style():
        figure, (axes,) = new_figure(2.9)
        study, promoted = evidence.study, evidence.promoted
        if study is not None:
            rows += _draw_frontier(axes, study, _compute_range(evidence))
            rows += _draw_rung_lines(axes, evidence, study, against="train_flops")
            rows += _draw_holdout(axes, evidence, against="train_flops")
        draw_runs(axes, evidence, "train_flops")
        if promoted is not None:
            rows += _draw_promoted(axes, promoted, promoted.flops)
        data = pd.DataFrame(rows)
        flops_axis(axes.xaxis, *padded(data["train_flops"].to_numpy(), 0.04))
        loss_axis(axes.yaxis, *padded(_loss_extent(data), 0.05))
        light_grid(axes)
        _legends(figure, evidence, law=study is not None and not no_optimum(study))
    band_leaves = (
        " The band is wider than the picture: the law hardly knows the loss there."
        if "loss_nats_high" in data and data["loss_nats_high"].max() > axes.get_ylim()[1]
        else ""
    )
    law = (
        (no_optimum(study) or _curve_text(study, band_leaves)) + _others(evidence)
        if study is not None
        else "No law is drawn, since none has been fitted. "
    )
    held_out = (
        "Hollow dots, of the largest budgets, were held out: their bars are what the rest "
        "forecast for them. "
        if evidence.held_out
        else ""
    )
    foretold = (
        "The bar across is the forecast of the promoted run with its interval"
        f"{', the diamond what it measured' if promoted.measured is not None else ''}. "
        if promoted is not None
        else ""
    )
    lines = "; thin lines follow one size through its token budgets" if study is not None else ""
    return Drawing(
        name=name,
        title=title,
        how_to_read=f"Each dot is one finished run, coloured by model size{lines}. {law}{held_out}"
        f"{foretold}"
        "Both axes are logarithmic.",
        distrust="The band knows the spread between runs and of the coefficients. It doesn't know "
        "whether the law's form still holds beyond the last dot, nor whether the recipe for "
        f"learning rate and batch is equally good at every size.{_warned(study)}"
        if study is not None
        else "Runs of unlike size and budget differ for more than one reason at once.",
        data=sizes_in_units(data, evidence.study),
        figure=figure,
    )


def _others(evidence: LawEvidence[DrawnRun]) -> str:
    count = sum(evidence.is_of_other_variant(record.run_id) for record in evidence.done)
    return (
        f"Pale dots, {count} of them, are other variants: the law is not theirs. " if count else ""
    )


def _warned(study: Study | None) -> str:
    statuses = dict.fromkeys(w.status for w in study.surface.warnings) if study else {}
    return f" The fit itself warns of {', '.join(statuses)}." if statuses else ""


def loss_tokens(evidence: LawEvidence[DrawnRun]) -> Drawing:
    """Loss against tokens, one line a size: what more data buys each of them."""
    name, title = "loss_tokens", "Loss against training tokens, by size"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    rows = _run_rows(evidence)
    with style():
        figure, (axes,) = new_figure(2.6)
        if evidence.study is not None:
            rows += _draw_rung_lines(axes, evidence, evidence.study, against="tokens")
            rows += _draw_holdout(axes, evidence, against="tokens")
        draw_runs(axes, evidence, "tokens")
        if evidence.promoted is not None:
            rows += _draw_promoted(axes, evidence.promoted, evidence.promoted.tokens)
        data = pd.DataFrame(rows)
        count_axis(axes.xaxis, *padded(data["tokens"].to_numpy()), "Training tokens")
        loss_axis(axes.yaxis, *padded(_loss_extent(data), 0.05))
        light_grid(axes)
        _legends(figure, evidence, law=False)
    return Drawing(
        name=name,
        title=title,
        how_to_read="Dots are finished runs, coloured by model size. "
        + (
            "The line through one colour is the fitted surface at that size. Where it flattens, "
            "more tokens buy that size little and a larger model is the better use of compute. "
            + _others(evidence)
            if evidence.study is not None
            else ""
        ),
        distrust="Every budget is a run of its own with its own learning-rate schedule, so these "
        "are final losses, not snapshots along one run.",
        data=sizes_in_units(data, evidence.study),
        figure=figure,
    )


def draw_runs(axes: Axes, evidence: LawEvidence[DrawnRun], x: str, y: str = "heldout_nats") -> None:
    """A dot a run: filled if fitted, hollow if held out, a cross if left out of the fit."""
    at = {
        record.run_id: (getattr(record, x), getattr(record, y), record.rung)
        for record in evidence.done
    }
    draw_dots(axes, evidence, at)


def _run_rows(evidence: LawEvidence[DrawnRun]) -> list[dict[str, Any]]:
    return [
        {
            "series": "run",
            "label": record.run_id,
            "rung": record.rung,
            "flops_per_token": record.flops_per_token,
            "tokens": record.tokens,
            "train_flops": record.train_flops,
            "loss_nats": record.heldout_nats,
            "use": use_of(record, evidence),
        }
        for record in evidence.done
    ]


def use_of(record: DrawnRun, evidence: LawEvidence[DrawnRun]) -> str:
    """What the fit did with a run, in words."""
    if record.run_id in evidence.excluded:
        return f"left out: {evidence.excluded[record.run_id]}"
    if evidence.study is None:
        return "not fitted yet"
    if evidence.is_of_other_variant(record.run_id):
        return "another variant than the fitted one"
    if record.run_id not in evidence.fitted:
        return "finished after the fit"
    return "fitted, and held out in the check" if record.run_id in evidence.held_out else "fitted"


def _compute_range(evidence: LawEvidence[DrawnRun]) -> tuple[float, float, float]:
    """Smallest and largest compute measured, and how far the law is drawn."""
    flops = [record.train_flops for record in evidence.done]
    far = evidence.promoted.flops if evidence.promoted else max(flops)
    return min(flops), max(flops), max(far, max(flops)) * 1.15


def _draw_frontier(
    axes: Axes, study: Study, reach: tuple[float, float, float]
) -> list[dict[str, Any]]:
    law = surface_of(study)
    if not law.has_optimum:
        return []
    low, measured, far = reach
    flops = np.unique(np.append(np.geomspace(low, far, 97), measured))
    best = [law.optimum(float(c)) for c in flops]
    size, tokens = np.array([b.size for b in best]), np.array([b.tokens for b in best])
    value, below, above = study.surface.predict_many(size, tokens, level=study.settings.level)
    axes.fill_between(flops, below, above, color=INK, alpha=0.1, linewidth=0, zorder=1)
    inside = flops <= measured
    axes.plot(flops[inside], value[inside], color=INK, zorder=3)
    axes.plot(flops[~inside], value[~inside], color=INK, dashes=(4, 2), zorder=3)
    columns = {"train_flops": flops, "size": size, "tokens": tokens, "loss_nats": value}
    return tidy(
        "law along the optimum", columns | {"loss_nats_low": below, "loss_nats_high": above}
    )


def _draw_rung_lines(
    axes: Axes, evidence: LawEvidence[DrawnRun], study: Study, *, against: str
) -> list[dict[str, Any]]:
    sizes = dict(zip(study.points.label, study.points.size, strict=True))
    rows = []
    for rung, color in evidence.colors.items():
        runs = [r for r in evidence.done if r.rung == rung and r.run_id in sizes]
        if len({r.tokens for r in runs}) < 2:
            continue
        tokens = np.geomspace(min(r.tokens for r in runs), max(r.tokens for r in runs), 25)
        size = np.full_like(tokens, sizes[runs[0].run_id])
        flops = tokens * runs[0].flops_per_token
        loss = surface_of(study)(size, tokens)
        axes.plot(
            flops if against == "train_flops" else tokens,
            loss,
            color=color,
            linewidth=0.7,
            alpha=0.8,
            zorder=2,
        )
        columns = {"train_flops": flops, "size": size, "tokens": tokens, "loss_nats": loss}
        rows += tidy(f"law at rung {rung}", columns)
    return rows


def _draw_holdout(
    axes: Axes, evidence: LawEvidence[DrawnRun], *, against: str
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    bars: set[tuple[float, float, float]] = set()  # repeats of a cell share theirs
    for point in evidence.holdout.points if evidence.holdout else ():
        x = point.flops if against == "train_flops" else point.tokens
        bars.add((x, point.forecast.low, point.forecast.high))
        rows.append(
            {
                "series": "held-out forecast",
                "label": point.label,
                "tokens": point.tokens,
                "train_flops": point.flops,
                "loss_nats": point.forecast.value,
                "loss_nats_low": point.forecast.low,
                "loss_nats_high": point.forecast.high,
            }
        )
    if bars:
        axes.vlines(*zip(*sorted(bars), strict=True), color=MUTED, linewidth=0.9)
    return rows


def _draw_promoted(axes: Axes, promoted: Promoted, x: float) -> list[dict[str, Any]]:
    forecast = promoted.forecast
    draw_promoted(axes, x, forecast, promoted.measured)
    where = {"label": promoted.label, "tokens": promoted.tokens, "train_flops": promoted.flops}
    rows = [
        {
            **where,
            "series": "forecast",
            "loss_nats": forecast.value,
            "loss_nats_low": forecast.low,
            "loss_nats_high": forecast.high,
        }
    ]
    if promoted.measured is not None:
        rows.append({**where, "series": "measured", "loss_nats": promoted.measured})
    return rows


def _curve_text(study: Study, band_leaves: str) -> str:
    return (
        "The curve is the loss of the best split of each compute budget between size and tokens, "
        "by the fitted surface; solid where runs were measured, dashed beyond, with the "
        f"{level_text(study.settings.level)} band of one new run. Runs lie above it because most "
        f"are not at the best split.{band_leaves} "
    )


def _loss_extent(data: pd.DataFrame) -> Array:
    """What the axis must hold: everything but the law's band, which may be wider than any page."""
    seen = data[data["series"] != "law along the optimum"]
    columns = [c for c in ("loss_nats", "loss_nats_low", "loss_nats_high") if c in data]
    values = np.append(seen[columns].to_numpy(dtype=float).ravel(), data["loss_nats"])
    return np.asarray(values[np.isfinite(values)])


def _legends(figure: Figure, evidence: LawEvidence[DrawnRun], *, law: bool) -> None:
    """Sizes in a row above, marks below: no curve can run into either."""
    size_legend(figure, evidence)
    marks: list[Line2D] = []
    if law and evidence.study is not None:
        band = f"{level_text(evidence.study.settings.level)} band"
        marks.append(Line2D([], [], color=INK, label=f"law along the optimum, {band}"))
    if evidence.held_out:
        marks.append(_mark("o", MUTED, PAPER, "held out, with its forecast"))
    if any(evidence.is_of_other_variant(record.run_id) for record in evidence.done):
        marks.append(_mark("o", MUTED, MUTED, "another variant", alpha=PALE))
    if any(record.run_id in evidence.excluded for record in evidence.done):
        marks.append(_mark("x", EXCLUDED, EXCLUDED, "left out of the fit"))
    if evidence.promoted is not None:
        marks.append(
            _mark("|", FORECAST, PAPER, f"forecast, {level_text(evidence.promoted.forecast.level)}")
        )
        if evidence.promoted.measured is not None:
            marks.append(_mark("D", INK, INK, "promoted run, measured"))
    if marks:
        figure.legend(handles=marks, loc="outside lower left", ncols=2, columnspacing=1)


def _mark(marker: str, color: str, face: str, label: str, alpha: float = 1) -> Line2D:
    line = Line2D([], [], linestyle="", marker=marker, color=color, label=label, alpha=alpha)
    line.set_markerfacecolor(face)
    return line
