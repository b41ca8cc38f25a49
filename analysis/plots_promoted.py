"""A promoted run in a figure: its forecast as a bar, and what it then measured as a diamond."""

from __future__ import annotations

from matplotlib.axes import Axes

from analysis.plots_style import FORECAST, INK
from analysis.results import Prediction


def draw_promoted(axes: Axes, x: float, forecast: Prediction, measured: float | None) -> None:
    """Both over the same ``x``; nothing measured, no diamond."""
    axes.errorbar(
        x,
        forecast.value,
        yerr=[[forecast.value - forecast.low], [forecast.high - forecast.value]],
        color=FORECAST,
        linewidth=1.6,
        capsize=4,
        marker="_",
        markersize=5,
        zorder=5,
    )
    if measured is not None:
        axes.plot(x, measured, "D", color=INK, markersize=3.6, zorder=6)
