"""Every forecast of the ledger beside what its run measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.plots_evidence import Evidence, HeldForecast
from analysis.plots_style import (
    FORECAST,
    INK,
    PAPER,
    Drawing,
    absent,
    light_grid,
    new_figure,
    safe_label,
    style,
)
from analysis.wording import level_text

NAME, TITLE = "forecasts", "Forecasts against measurements"
MOST_ROWS = 24
"""The newest; a longer ledger has the rest in the data."""
ROW_HEIGHT = 0.17
"""Inches."""
WIDEST = 5
"""Times the median interval's longer side: how far the axis follows intervals."""


def forecasts(evidence: Evidence) -> Drawing:
    """A row a forecast: its interval and the measured loss, both in percent of the forecast."""
    held = evidence.forecasts
    if not held:
        return absent(
            NAME,
            TITLE,
            "No forecast has been held against a measurement yet; `windtunnel launch` registers "
            "one and trains its run.",
        )
    drawn = held[-MOST_ROWS:]
    with style():
        figure, (axes,) = new_figure(0.75 + ROW_HEIGHT * len(drawn))
        axes.axvline(0, color=INK, linewidth=0.8)
        reach = _reach(drawn)
        for row, one in enumerate(reversed(drawn)):
            _draw(axes, row, one, reach)
        labels = [
            f"{safe_label(one.evidence, 18)}, {one.forecast.extrapolation_ratio:.3g}x"
            for one in reversed(drawn)
        ]
        axes.set_yticks(range(len(drawn)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.7, len(drawn) - 0.3)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Measured loss against its forecast (%)")
        light_grid(axes, "x")
        figure.legend(handles=_legend(held), loc="outside lower left", ncols=3, columnspacing=1)
    left_out = len(held) - len(drawn)
    return Drawing(
        name=NAME,
        title=TITLE,
        how_to_read="Each row is one forecast of the ledger, the newest at the bottom, with how "
        "far beyond the largest run fitted it went. The bar is its interval, the diamond what the "
        "run then measured: left of the line the loss was lower than forecast. "
        "An arrow: the interval goes on beyond the axis."
        + (f" {left_out} older in the data only." if left_out else ""),
        distrust="A few rows say little about intervals, and rows of one sweep or table share "
        "their errors. Diamonds that all lie on one side mean that the forecasts are biased, even "
        "if every bar holds its own.",
        data=pd.DataFrame([_row(one) for one in held]),
        figure=figure,
    )


def _offset(loss: float, one: HeldForecast) -> float:
    return 100 * (loss / one.forecast.value - 1)


def _ends(one: HeldForecast) -> tuple[float, float]:
    return _offset(one.forecast.low, one), _offset(one.forecast.high, one)


def _reach(drawn: Sequence[HeldForecast]) -> float:
    """How far from the forecast the axis goes, in percent: to every measured loss, but not to the
    end of an interval so wide that no other could be read beside it."""
    sides = [max(-low, high) for low, high in map(_ends, drawn)]
    measured = max(abs(_offset(one.measured, one)) for one in drawn)
    return max(1.1 * measured, min(max(sides), WIDEST * statistics.median(sides)))


def _draw(axes: Axes, row: int, one: HeldForecast, reach: float) -> None:
    low, high = _ends(one)
    ends = [max(low, -reach), min(high, reach)]
    axes.plot(ends, [row, row], color=FORECAST, linewidth=4, alpha=0.35, solid_capstyle="butt")
    for end, marker, goes_on in ((-reach, "<", low < -reach), (reach, ">", high > reach)):
        if goes_on:
            axes.plot(end, row, marker=marker, color=FORECAST, markersize=4, clip_on=False)
    axes.plot(
        _offset(one.measured, one),
        row,
        marker="D",
        color=INK,
        markersize=3.8,
        markerfacecolor=INK if one.inside else PAPER,
        zorder=5,
    )


def _legend(held: tuple[HeldForecast, ...]) -> list[Line2D]:
    levels = sorted({one.forecast.level for one in held})
    words = level_text(*levels)
    handles = [
        Line2D([], [], color=FORECAST, linewidth=4, alpha=0.35, label=f"{words} interval"),
        Line2D([], [], linestyle="", marker="D", color=INK, label="measured, inside"),
    ]
    if not all(one.inside for one in held):
        handles.append(
            Line2D(
                [], [], linestyle="", marker="D", color=INK, markerfacecolor=PAPER, label="outside"
            )
        )
    return handles


def _row(one: HeldForecast) -> dict[str, object]:
    forecast = one.forecast
    return {
        "evidence": one.evidence,
        "extrapolation_ratio": forecast.extrapolation_ratio,
        "level": forecast.level,
        "forecast_nats": forecast.value,
        "forecast_low_nats": forecast.low,
        "forecast_high_nats": forecast.high,
        "measured_nats": one.measured,
        "inside": one.inside,
    }
