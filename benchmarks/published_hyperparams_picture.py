"""The picture of what forecasts of learning rate and batch cost on other people's sweeps.

    python benchmarks/published_hyperparams_picture.py forecasts=FILE to=PNG

`FILE` is the CSV of `benchmarks/published_hyperparams.py`. Left, the mean loss of each law or rule
above the lowest of the cell, on the cells that a law of N and D forecasts. Right, the share of
optima inside their interval by how far the cell lies beyond those fitted, every cut alike: with
nothing for the law's form, and with what intervals allow for it.
"""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, NullLocator
from measuring import options
from published_hyperparams import DISTANCES, lacking, of_size_and_tokens

from analysis.hyperparam_laws import FORM_RATE
from analysis.plots_style import FORECAST, INK, MUTED, PAPER, light_grid, style

CAMPAIGNS = {
    "steplaw_dense": ("StepLaw, dense", "o", FORECAST),
    "steplaw_moe": ("StepLaw, mixtures", "o", PAPER),
    "misfitting_openlm": ("OpenLM, 3 rates a cell", "s", MUTED),
    "misfitting_fairseq": ("fairseq, 3 rates a cell", "D", INK),
}
"""Of each table its name, marker and face."""
RULES = {
    "own bowl": "the cell's own minimum",
    "against N, D": "law of N and D",
    "against C": "law of C",
    "StepLaw's formula": "StepLaw's formula",
    "grown as sqrt": "grown as square roots",
    "grown linearly": "grown linearly",
    "largest cell's": "the largest cell's, unchanged",
    "DeepSeek's formula": "DeepSeek's formula",
    "Ling's formula": "Ling's formula",
}
NEAR_OPTIMAL = 0.25
"""Percent of the loss that counts as near-optimal."""


def draw_costs(axes: pyplot.Axes, frame: pd.DataFrame) -> None:
    same = frame.loc[frame["rule"] == "against N, D", ["table", "cut", "size", "tokens"]]
    mean = 100 * frame.merge(same).groupby(["table", "rule"])["share"].mean()
    axes.axvline(NEAR_OPTIMAL, color=MUTED, linewidth=0.8, linestyle="--")
    axes.text(1.05 * NEAR_OPTIMAL, -0.62, "near-optimal to here", color=MUTED, va="center")
    for place, rule in enumerate(reversed(RULES)):
        for table, (_, marker, face) in CAMPAIGNS.items():
            if (table, rule) in mean.index:
                edge = FORECAST if table.startswith("steplaw") else INK
                axes.plot(
                    mean[table, rule],
                    place,
                    linestyle="",
                    marker=marker,
                    markersize=5.5,
                    markerfacecolor=face,
                    markeredgecolor=edge,
                )
    axes.set_ylim(-1, len(RULES) - 0.6)
    axes.set_yticks(range(len(RULES)), list(reversed(RULES.values())))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xscale("log")
    axes.set_xlim(0.07, 3)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.25, 0.5, 1, 2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("Loss above the cell's lowest (%, mean)")
    light_grid(axes, "y")


def draw_shares(axes: pyplot.Axes, frame: pd.DataFrame) -> None:
    long = of_size_and_tokens(frame)
    group = pd.cut(long["distance"], DISTANCES, right=False)
    axes.axhline(90, color=INK, linewidth=0.8)
    lines = (
        ("with an allowance for the law's form", (0.75, 102), FORM_RATE, FORECAST, "-"),
        ("without it", (2.4, 52), 0.0, MUTED, "--"),
    )
    for label, (x, y), rate, color, dashes in lines:
        parts = long.groupby(group, observed=True)
        shares = [100 * lacking(part, rate).mean() for _, part in parts]
        places = range(len(shares))
        axes.plot(places, shares, marker="o", markersize=4.5, color=color, linestyle=dashes)
        axes.text(x, y, label, color=color, va="bottom")
    names = [f"{low:.1f} to {high:.1f}" for low, high in pairwise((0.0, *DISTANCES[2:-1]))]
    axes.set_xticks(range(len(names) + 2), ["within", *names, "more"])
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("E-folds of size and tokens beyond the cells")
    axes.set_ylabel("Optima inside their 90% interval (%)", color=INK)
    light_grid(axes, "y")


def main() -> None:
    chosen = options({"forecasts": "", "to": ""})
    if not (chosen["forecasts"] and chosen["to"]):
        raise SystemExit("forecasts=FILE to=PNG")
    frame = pd.read_csv(chosen["forecasts"])
    with style():
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(7.2, 3.4), width_ratios=(1.1, 1), layout="constrained"
        )
        draw_costs(left, frame)
        draw_shares(right, frame)
        handles = [
            pyplot.Line2D(
                [],
                [],
                linestyle="",
                marker=marker,
                markerfacecolor=face,
                markeredgecolor=FORECAST if table.startswith("steplaw") else INK,
                label=name,
            )
            for table, (name, marker, face) in CAMPAIGNS.items()
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False)
        figure.savefig(chosen["to"], dpi=200)


if __name__ == "__main__":
    main()
