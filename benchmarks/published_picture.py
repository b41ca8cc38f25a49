"""The picture of the forecasts of other people's runs.

    python benchmarks/published_picture.py forecasts=FILE to=PNG

`FILE` is the CSV of `benchmarks/published_forecasts.py`. Left, of each table the cut whose top run
lies nearest to 16 times beyond: its 90 % interval and what was measured, in percent of the
forecast. Right, the share of runs inside their interval by how far they lie beyond those fitted,
every cut alike: with nothing for the law's form, and with what intervals allow for it, of each
publisher by the rate that the others make, so that none is judged by itself.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.lines import Line2D
from measuring import options
from published_allowance import inside, least_rate, publisher

from analysis.plots_style import FORECAST, INK, MUTED, PAPER, light_grid, style

NEAR = 16.0
REACH = 16.0
"""Percent of the forecast to which the left axis goes."""
GROUPS = (0.0, 0.25, 0.5, 1.0, 2.0, np.inf)
"""Of reach: distance beyond the runs fitted over their own range, both in log compute."""
GROWTH = 1.5
"""The allowance grows with the distance like what hold-outs widen an interval by."""


def chosen_rows(frame: pd.DataFrame) -> pd.DataFrame:
    top = frame[frame["top"]].reset_index(drop=True)
    off = np.log(top["ratio"] / NEAR).abs()
    return top.loc[off.groupby(top["table"]).idxmin()].sort_values("table", ascending=False)


def draw_rows(axes: pyplot.Axes, rows: pd.DataFrame) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, (_, row) in enumerate(rows.iterrows()):
        low, high, measured = (
            100 * (row[column] / row["forecast"] - 1) for column in ("low", "high", "measured")
        )
        axes.plot(
            [max(low, -REACH), min(high, REACH)],
            [place, place],
            color=FORECAST,
            linewidth=4,
            alpha=0.35,
            solid_capstyle="butt",
        )
        for end, marker, beyond in ((-REACH, "<", low < -REACH), (REACH, ">", high > REACH)):
            if beyond:
                axes.plot(end, place, marker=marker, color=FORECAST, markersize=4, clip_on=False)
        axes.plot(
            measured,
            place,
            marker="D",
            color=INK,
            markersize=3.8,
            markerfacecolor=INK if row["inside"] else PAPER,
            zorder=5,
        )
    names = rows["table"].str.replace("_original", "").str.replace("_", " ") + rows["ratio"].map(
        ", {:.0f}x".format
    )
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(-1.03 * REACH, 1.03 * REACH)
    axes.set_xlabel("Measured loss against its forecast (%)")
    light_grid(axes, "x")


def with_allowance(frame: pd.DataFrame) -> pd.Series:
    found = []
    who = frame["table"].map(publisher)
    frame = frame.assign(publisher=who, cut=frame["table"] + frame["factor"].astype(str))
    for name, own in frame.groupby("publisher"):
        rate = least_rate(frame[frame["publisher"] != name], GROWTH)
        found.append(inside(own, rate, GROWTH))
    return pd.concat(found)


def draw_shares(axes: pyplot.Axes, frame: pd.DataFrame) -> None:
    axes.axhline(90, color=INK, linewidth=0.8)
    places = range(len(GROUPS) - 1)
    group = pd.cut(frame["reach"], GROUPS)
    lines = (
        ("with an allowance for the law's form", (0, 96), with_allowance(frame), FORECAST, "-"),
        ("without it", (1.15, 63), frame["alone"], MUTED, "--"),
    )
    for label, (x, y), held, color, dashes in lines:
        cuts = held.groupby([group, frame["table"], frame["factor"]], observed=True).mean()
        share = 100 * cuts.groupby(level=0, observed=True).mean()
        axes.plot(places, share, marker="o", markersize=4.5, color=color, linestyle=dashes)
        axes.text(x, y, label, color=color)
    axes.set_xticks(places, ["to ¼", "¼ to ½", "½ to 1", "1 to 2", "more"])
    axes.set_ylim(0, 100)
    axes.set_xlabel("Distance beyond the runs fitted, in their own range")
    axes.set_ylabel("Runs inside their 90% interval (%)", color=INK)
    light_grid(axes, "y")


def main() -> None:
    chosen = options({"forecasts": "", "to": ""})
    if not (chosen["forecasts"] and chosen["to"]):
        raise SystemExit("forecasts=FILE to=PNG")
    frame = pd.read_csv(chosen["forecasts"])
    with style():
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(7.2, 4.0), width_ratios=(1.25, 1), layout="constrained"
        )
        draw_rows(left, chosen_rows(frame))
        draw_shares(right, frame)
        figure.legend(
            handles=[
                Line2D([], [], color=FORECAST, linewidth=4, alpha=0.35, label="90% interval"),
                Line2D([], [], linestyle="", marker="D", color=INK, label="measured, inside"),
                Line2D(
                    [],
                    [],
                    linestyle="",
                    marker="D",
                    color=INK,
                    markerfacecolor=PAPER,
                    label="outside",
                ),
            ],
            loc="outside lower left",
            ncols=3,
            frameon=False,
        )
        figure.savefig(chosen["to"], dpi=200)


if __name__ == "__main__":
    main()
