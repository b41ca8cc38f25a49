"""The leverage that a sweep's trials measured, against compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.feature_trial import Trial
from analysis.leverage import LeverageCurve
from analysis.plots_evidence import Evidence
from analysis.plots_style import (
    EXCLUDED,
    FORECAST,
    INK,
    MUTED,
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
from analysis.wording import level_text

NAME, TITLE = "leverage_compute", "Leverage of a variant against compute"
NO_TRIAL = (
    "No trial was made of this sweep. `windtunnel compare` holds a variant against its baseline, "
    "run by run; with two or more sizes and budgets it reads the leverage off them."
)
REACH = "baseline's largest run"
FURTHEST = 100.0
"""An axis ends here and at its inverse; beyond it a leverage is as good as unknown."""
LOOKS = ((FORECAST, "-"), (INK, "--"), (MUTED, "-."), (EXCLUDED, ":"))


def leverage_compute(evidence: Evidence) -> Drawing:
    """The leverage of every trial of the sweep."""
    return leverage_of_trials(evidence.trials)


def leverage_of_trials(trials: Sequence[Trial]) -> Drawing:
    """Leverage with its band along the ladder; of a lone trial also what each pair says."""
    measured = [(trial, trial.leverage) for trial in trials if trial.leverage]
    if not trials:
        return absent(NAME, TITLE, NO_TRIAL)
    if not measured:
        said = [w.sentence for trial in trials for w in trial.warnings if w.status == "NO_LEVERAGE"]
        return absent(NAME, TITLE, f"{said[0][0].upper()}{said[0][1:]}." if said else NO_TRIAL)
    drawn = measured[: len(LOOKS)]
    data = pd.concat([_rows(trial, curve) for trial, curve in measured], ignore_index=True)
    low, high = _limits(data)
    with style():
        figure, (axes,) = new_figure(2.5 + 0.12 * len(drawn))
        axes.axhline(1, color=INK, linewidth=0.8)
        for (trial, curve), look in zip(drawn, LOOKS, strict=False):
            _draw(axes, curve, look, _said(trial), high)
        if len(drawn) == 1:
            _draw_pairs(axes, data, high)
        flops = data["train_flops"].to_numpy()
        _draw_reach(axes, measured[0][0], flops)
        flops_axis(axes.xaxis, *padded(flops, 0.05))
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        ticks = log_ticks(low, high) if high / low > 4 else even_ticks(low, high)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_ylabel("Leverage (ratio of compute)")
        light_grid(axes)
        figure.legend(loc="outside lower left", ncols=1 if len(drawn) > 1 else 2, columnspacing=1)
    left_out = len(measured) - len(drawn)
    return Drawing(
        name=NAME,
        title=TITLE,
        how_to_read="The compute the baseline needs to reach the variant's loss, divided by the "
        "variant's own: above 1 the variant saves compute. The band is the "
        f"{level_text(drawn[0][1].largest.level)} interval; where it runs out at the top, the "
        "baseline may never come down to that loss. "
        + ("A dot is what one pair of runs says by itself. " if len(drawn) == 1 else "")
        + "Above the dotted line the baseline's law is read beyond its own largest run."
        + (f" {left_out} more in the data only." if left_out else ""),
        distrust="Size and tokens are taken to grow alike, and both sides are trained by one "
        "recipe: a learning rate that suits one of them better is in the leverage. The curve ends "
        "where the runs do, and says nothing of models beyond them.",
        data=data,
        figure=figure,
    )


def _said(trial: Trial) -> str:
    parts = [
        f"{path.rpartition('.')[2]} {value} against {trial.baseline[path]}"
        for path, value in trial.variant.items()
    ]
    return safe_label(", ".join(parts), 48)


def _rows(trial: Trial, curve: LeverageCurve) -> pd.DataFrame:
    """Places of the curve, then the pairs; what is not reached has no number."""
    rows: list[dict[str, Any]] = [
        {
            "trial": _said(trial),
            "series": "leverage",
            "train_flops": place.flops,
            "gap_nats": place.gap_nats.value,
            "leverage": place.value,
            "leverage_low": place.low,
            "leverage_high": place.high,
            "unreached_frac": place.unreached_frac,
        }
        for place in curve.places
    ]
    rows += [
        {
            "trial": _said(trial),
            "series": "pair",
            "train_flops": alone.flops,
            "gap_nats": pair.variant - pair.baseline,
            "leverage": alone.value,
        }
        for pair, alone in zip(trial.pairs, curve.pairs, strict=True)
    ]
    return pd.DataFrame(rows).astype({"leverage": float, "leverage_high": float})


def _limits(data: pd.DataFrame) -> tuple[float, float]:
    ends = pd.concat([data["leverage_low"], data["leverage"], data["leverage_high"]]).dropna()
    ends = ends.clip(1 / FURTHEST, FURTHEST)
    low, high = padded([1.0, *ends], 0.06)
    is_open = bool(data.loc[data["series"] == "leverage", "leverage_high"].isna().any())
    return low, max(high, 2.0) * (1.5 if is_open else 1.0)


def _draw(axes: Axes, curve: LeverageCurve, look: tuple[str, str], label: str, top: float) -> None:
    color, line = look
    flops = np.array([place.flops for place in curve.places])
    low, value, high = np.array(
        [[place.low, place.value, place.high] for place in curve.places], dtype=float
    ).T  # what is not reached is nan
    low, high = (np.where(np.isnan(end), top, end) for end in (low, high))
    axes.fill_between(flops, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(flops, value, color=color, linestyle=line, linewidth=1.2, label=label)


def _draw_pairs(axes: Axes, data: pd.DataFrame, top: float) -> None:
    pairs = data[data["series"] == "pair"]
    is_seen = pairs["leverage"] < top
    for rows, marker, label in (
        (pairs[is_seen], "o", "pair of runs"),
        (pairs[~is_seen].assign(leverage=top), "^", "pair, not reached"),
    ):
        if rows.empty:
            continue
        axes.plot(
            rows["train_flops"],
            rows["leverage"],
            marker,
            color=INK,
            alpha=0.5,
            markeredgewidth=0,
            clip_on=False,
            label=label,
        )


def _draw_reach(axes: Axes, trial: Trial, flops: Sequence[float] | np.ndarray) -> None:
    """Where the baseline's compute is that of its largest run."""
    largest = max(pair.flops for pair in trial.pairs)
    ends = np.array(padded(flops, 0.05))
    axes.plot(ends, largest / ends, color=MUTED, linewidth=0.8, linestyle=":", label=REACH)
