"""A feature trial: the gap of every pair against compute, with its trend."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.feature_trial import Trial
from analysis.laws import Array
from analysis.plots_style import (
    FORECAST,
    INK,
    Drawing,
    flops_axis,
    light_grid,
    new_figure,
    padded,
    style,
    tidy,
)
from analysis.wording import level_text


def feature_trial(trial: Trial) -> Drawing:
    """Gap in percent of the loss, one point a pair, the means of the rungs with their intervals."""
    flops = np.array([pair.flops for pair in trial.pairs])
    gaps = _percent([pair.gap for pair in trial.pairs])
    middle = float(np.exp(np.log(flops).mean()))
    ends = np.array(padded(flops))
    line = _percent(trial.mean.value + trial.trend.value * np.log10(ends / middle))
    by_rung = {
        rung.rung: (
            float(np.exp(np.mean([np.log(p.flops) for p in trial.pairs if p.rung == rung.rung]))),
            rung.gap,
        )
        for rung in trial.rungs
    }
    at = [x for x, _ in by_rung.values()]
    means = [gap for _, gap in by_rung.values()]
    with style():
        figure, (axes,) = new_figure(2.6)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.plot(ends, line, color=FORECAST, linewidth=1.2, label="trend")
        axes.plot(flops, gaps, "o", color=INK, alpha=0.5, markeredgewidth=0, label="pair of runs")
        axes.vlines(
            at,
            _percent([gap.low for gap in means]),
            _percent([gap.high for gap in means]),
            color=FORECAST,
            linewidth=1.0,
        )
        means_at = _percent([gap.value for gap in means])
        mean = f"mean of a size, {level_text(trial.mean.level)}"
        axes.plot(at, means_at, "s", color=FORECAST, markersize=4, label=mean)
        flops_axis(axes.xaxis, *padded(flops))
        axes.set_ylabel("Loss against the baseline (%)")
        light_grid(axes)
        figure.legend(loc="outside lower left", ncols=3, columnspacing=1)
    rows = [
        *tidy("pair", {"train_flops": flops, "gap_percent": gaps}),
        *tidy("trend", {"train_flops": ends, "gap_percent": line}),
        *tidy(
            "rung mean",
            {
                "train_flops": at,
                "gap_percent": _percent([gap.value for gap in means]),
                "low_percent": _percent([gap.low for gap in means]),
                "high_percent": _percent([gap.high for gap in means]),
            },
        ),
    ]
    return Drawing(
        name="feature_trial",
        title="A feature against its baseline",
        how_to_read=(
            "Each point is one pair of runs of the same size, tokens, seed and data; below zero "
            "the variant is better. Squares are the means of the rungs with their intervals, the "
            "line is the trend."
        ),
        distrust=(
            "The line is straight by assumption; far beyond the points it is a guess, and the "
            "table says from where on."
        ),
        data=pd.DataFrame(rows),
        figure=figure,
    )


def _percent(gap: ArrayLike) -> Array:
    """Logs of loss ratios as percent of the baseline's loss."""
    return np.asarray(100 * np.expm1(np.asarray(gap, dtype=float)))
