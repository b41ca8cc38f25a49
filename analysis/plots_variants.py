"""What a sweep's axes bought: loss against the reference variant, compute saved at equal loss."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.laws import Array, SaturatingPowerLaw
from analysis.noise import NoiseFloor, central_deviations, noise_within
from analysis.plots_evidence import Evidence, no_optimum, size_legend, surface_of
from analysis.plots_loss import NO_FIT, NO_RUNS
from analysis.plots_style import (
    EXCLUDED,
    INK,
    MUTED,
    PAPER,
    Drawing,
    absent,
    even_ticks,
    flops_axis,
    light_grid,
    log_ticks,
    new_figure,
    padded,
    safe_label,
    style,
)
from analysis.plots_surface import replicate_surfaces, tails
from analysis.records import RunRecord
from analysis.study import Study
from analysis.wording import counted, level_text

ONE_VARIANT = (
    "This sweep has one variant, so nothing was tried against anything. An axis such as "
    "recipe.shape.num_experts=[16,32,64] makes variants."
)
ONE_SHAPE = (
    "Activation and granularity are the same in every run, so no leverage of either can be seen. "
    "Axes such as recipe.shape.num_experts=[16,32,64] vary them."
)
NO_REFERENCE = (
    "Every finished run is of the fitted variant: there is no other whose compute could be held "
    "against its law."
)

MOST_VARIANTS = 8
MARKERS = "osD^vP*X"


def feature_trials(evidence: Evidence) -> Drawing:
    """Loss of every variant against the reference's at the same size and tokens, over compute."""
    name, title = "feature_trials", "Variants against the reference, and their trend"
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    cells: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    flops: dict[tuple[str, int], float] = {}
    for record in evidence.done:
        cell = (record.rung, record.tokens)
        cells[cell][evidence.variants.get(record.run_id, "")].append(record.heldout_nats)
        flops[cell] = record.train_flops
    names = sorted({evidence.variants.get(r.run_id, "") for r in evidence.done}, key=_by_numbers)
    if len(names) < 2:
        return absent(name, title, ONE_VARIANT)
    fitted = sorted(evidence.fitted_variants)
    reference = fitted[0] if len(fitted) == 1 and fitted[0] in names else names[0]
    others = [variant for variant in names if variant != reference]
    rows: list[dict[str, Any]] = []
    for cell, losses in cells.items():
        if reference not in losses:
            continue
        base = float(np.mean(losses[reference]))
        rows += [
            {
                "variant": variant,
                "rung": cell[0],
                "tokens": cell[1],
                "train_flops": flops[cell],
                "difference_percent": 100 * (float(np.mean(losses[variant])) / base - 1),
            }
            for variant in others
            if variant in losses
        ]
    if not rows:
        return absent(name, title, "No size and budget was run in the reference and in a variant.")
    data = pd.DataFrame(rows)
    study = evidence.study
    others_noise = _own_noise(cells.values(), others)
    with style():
        drawn = others[:MOST_VARIANTS]
        labels, columns = _legend_labels(drawn)
        figure, (axes,) = new_figure(2.7 if columns == 2 else 2.5 + 0.12 * len(drawn))
        axes.axhline(0, color=INK, linewidth=0.8)
        if study is not None:  # a difference of two runs: the noise of both
            noise = study.noise.sd if study.noise else study.surface.noise_sd
            theirs = max((own.sd for own in others_noise.values()), default=noise)
            both = float(np.hypot(noise, theirs))
            half = 100 * central_deviations(study.settings.level) * both
            axes.axhspan(-half, half, color=INK, alpha=0.08, linewidth=0)
        handles = _draw_trials(axes, data, drawn)
        for handle, label in zip(handles, labels, strict=True):
            handle.set_label(label)
        flops_axis(axes.xaxis, *padded(data["train_flops"].to_numpy(), 0.05))
        axes.set_ylabel("Loss over the reference's, minus 1 (%)")
        light_grid(axes)
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, columnspacing=1)
    left_out = len(others) - MOST_VARIANTS
    further = counted(left_out, "further variant is", "further variants are")
    more = f" {further} in the data only." if left_out > 0 else ""
    other_run = (
        f"noise between seeds is {max(own.sd for own in others_noise.values()):.2%} of the loss, "
        "the largest measured of a variant"
        if others_noise
        else "noise is the reference's, since no variant has repeated seeds"
    )
    band = (
        f"The grey band holds {level_text(study.settings.level)} of the differences that chance "
        f"makes between a run of the reference and one whose {other_run}. "
        if study is not None
        else "The noise between seeds isn't known before a fit, so small differences say nothing. "
    )
    return Drawing(
        name=name,
        title=title,
        how_to_read=f"The zero line is `{safe_label(reference, 60) or 'the reference'}`; below it "
        "a variant is better at the same rung and tokens. A line through a variant's dots is "
        f"its trend in log compute: what matters is where it goes.{more} " + band,
        distrust="A variant may cost more or fewer FLOPs at the same rung; the figure of leverage "
        "counts that. A gain that shrinks along compute may be gone at the target. "
        "`windtunnel compare` tests it.",
        data=data,
        figure=figure,
    )


def _own_noise(
    cells: Iterable[Mapping[str, Sequence[float]]], variants: Sequence[str]
) -> dict[str, NoiseFloor]:
    """Of each variant that has repeated seeds; ``cells`` hold losses by variant."""
    found = {}
    kept = list(cells)
    for variant in variants:
        losses = [losses[variant] for losses in kept if variant in losses]
        cell_N = np.repeat(np.arange(len(losses)), list(map(len, losses)))
        own = noise_within(np.concatenate([np.array(cell) for cell in losses]), cell_N)
        if own is not None:
            found[variant] = own
    return found


def _by_numbers(variant: str) -> list[str | float]:
    """A key that puts ``factor=2`` before ``factor=16``."""
    parts = re.split(r"(\d+(?:\.\d+)?)", variant)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _legend_labels(variants: Sequence[str]) -> tuple[list[str], int]:
    """A label for each variant and in how many columns: one where shorter ones would be alike."""
    labels = [safe_label(variant, 30) for variant in variants]
    if len(set(labels)) == len(labels):
        return labels, 2
    return [safe_label(variant, 64) for variant in variants], 1


def _draw_trials(axes: Axes, data: pd.DataFrame, variants: list[str]) -> list[Line2D]:
    handles = []
    inks = cycle((INK, MUTED, EXCLUDED))  # colours stand for sizes elsewhere, so markers tell apart
    for variant, color, marker in zip(variants, inks, MARKERS, strict=False):
        own = data[data["variant"] == variant].sort_values("train_flops")
        x, y = own["train_flops"].to_numpy(), own["difference_percent"].to_numpy()
        axes.plot(x, y, marker, color=color, markerfacecolor=PAPER, linestyle="")
        if len(np.unique(x)) > 2:
            slope, height = np.polyfit(np.log(x), y, 1)
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, height + slope * np.log(ends), color=color, linewidth=0.9)
        handles.append(
            Line2D([], [], color=color, marker=marker, markerfacecolor=PAPER, linewidth=0.9)
        )
    return handles


def leverage(evidence: Evidence) -> Drawing:
    """Compute the fitted variant would need for each other run's loss, over that run's own."""
    name, title = "leverage", "Efficiency leverage against activation and granularity"
    study = evidence.study
    if not evidence.done:
        return absent(name, title, NO_RUNS)
    shapes = {(record.activation_ratio, record.granularity) for record in evidence.done}
    if len(shapes) < 2:
        return absent(name, title, ONE_SHAPE)
    if study is None:
        return absent(name, title, NO_FIT)
    others = [
        record
        for record in evidence.done
        if record.run_id not in evidence.fitted and record.run_id not in evidence.excluded
    ]
    if not others or study.points.size_variable != "flops_per_token":
        return absent(name, title, NO_REFERENCE)
    if no_optimum(study):
        return absent(name, title, f"{no_optimum(study)}No compute is saved against it.")
    rows = [_leverage_row(study, record) for record in others]
    fitted = {r.run_id: r for r in evidence.done if r.run_id in evidence.fitted}
    base = next(iter(fitted.values()), None)
    data = pd.DataFrame(rows)
    with style():
        figure, panels = new_figure(4.2, rows=2)
        columns = ("activation_ratio", "granularity")
        labels = ("Activation ratio", "Granularity")
        for axes, column, other, label in zip(panels, columns, columns[::-1], labels, strict=True):
            alone = data[other] == (getattr(base, other) if base is not None else np.nan)
            _draw_leverage(
                axes, evidence, data.assign(alone=alone if alone.any() else True), column
            )
            if base is not None:
                axes.axvline(getattr(base, column), color=MUTED, linewidth=0.6, linestyle=":")
            axes.set_xlabel(label)
        size_legend(figure, evidence)
    unreached = int(data["leverage"].isna().sum())
    never = (
        f" {counted(unreached, 'run lies', 'runs lie')} below what the fitted law can ever reach; "
        "no leverage follows, and the data alone have them."
        if unreached
        else ""
    )
    return Drawing(
        name=name,
        title=title,
        how_to_read="A dot is a run of another variant: the compute the fitted variant would need "
        "for the loss it reached, over what it would need for the loss its own law gives at the "
        "same size and tokens. Above 1 the variant saves compute. Bars are "
        f"{level_text(study.settings.level)} intervals from the bootstrap and the noise of a run, "
        "sizes side by side; the dotted line is the fitted one. Full dots differ from it in this "
        "ratio alone, pale ones in the other too." + never,
        distrust="Where activation and granularity move together, neither panel shows the effect "
        "of one alone. The reference is the fitted variant; a leverage over a dense model is what "
        "`windtunnel compare sweep=trial_dense` measures.",
        data=data,
        figure=figure,
    )


def _leverage_row(study: Study, record: RunRecord) -> dict[str, Any]:
    law = surface_of(study)
    size, tokens = record.flops_per_token, record.tokens
    at = _saved(law.frontier(), record.heldout_nats, float(law(size, tokens)))
    rng = np.random.default_rng(0)
    noise = study.noise.sd if study.noise else study.surface.noise_sd
    replicates = replicate_surfaces(study, 300)
    spread = np.array(
        [
            _saved(surface.frontier(), loss, float(surface(size, tokens)))
            for surface, loss in zip(
                replicates,
                record.heldout_nats * np.exp(rng.normal(0, noise, len(replicates))),
                strict=True,
            )
        ]
    )
    low, high = _ends(spread, tails(study)) if len(spread) else (at, at)
    return {
        "run_id": record.run_id,
        "rung": record.rung,
        "activation_ratio": record.activation_ratio,
        "granularity": record.granularity,
        "train_flops": record.train_flops,
        "leverage": at,
        "low": min(low, at),
        "high": max(high, at),
    }


def _saved(frontier: SaturatingPowerLaw, loss: float, usual: float) -> float:
    """Compute for ``loss`` over compute for ``usual``; nan where the law never gets there."""
    if loss <= frontier.E or usual <= frontier.E:
        return float("nan")
    return frontier.inverse(loss) / frontier.inverse(usual)


def _ends(spread: Array, shares: tuple[float, float]) -> tuple[float, float]:
    """Quantiles; a replicate that never gets there counts as the upper end."""
    low, high = np.quantile(np.where(np.isnan(spread), np.inf, spread), shares, method="nearest")
    most = np.nanmax(spread) if np.isfinite(spread).any() else np.nan
    return float(low if np.isfinite(low) else most), float(high if np.isfinite(high) else most)


def _draw_leverage(axes: Axes, evidence: Evidence, data: pd.DataFrame, column: str) -> None:
    seen = data[data["leverage"].notna()]
    axes.axhline(1, color=INK, linewidth=0.8)
    middle = (len(evidence.colors) - 1) / 2
    for index, (rung, color) in enumerate(evidence.colors.items()):
        own = seen[seen["rung"] == rung]
        beside = own[column] * np.exp(0.02 * (index - middle))  # sizes side by side, not stacked
        for rows, alpha in ((~own["alone"], 0.25), (own["alone"], 1.0)):
            x, drawn = beside[rows], own[rows]
            axes.vlines(x, drawn["low"], drawn["high"], color=color, linewidth=0.8, alpha=alpha)
            axes.plot(x, drawn["leverage"], "o", color=color, alpha=alpha, markeredgewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = [1.0, *seen["low"].dropna(), *seen["high"].dropna()]
    low, high = padded([max(min(ends), 1e-3), min(max(ends), 1e3)], 0.08)
    axes.set_ylim(low, high)
    ticks = log_ticks(low, high) if high / low > 4 else even_ticks(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    places = sorted(set(data[column]))
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.set_xticks([], minor=True)
    axes.set_xlim(*padded(places, 0.15))
    axes.set_ylabel("Leverage (ratio of compute)")
    light_grid(axes)
