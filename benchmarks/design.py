"""The design of the next runs against the full grid, random choice and largest-first choice.

Sweeps are drawn from a known law of sizes, tokens and granularity with realistic noise. The design
begins with the cheapest runs, then is refitted after every fifth of a quarter of the full grid's
compute; each cell may be run with several seeds. Error: |forecast / truth - 1| at a target beyond
the grid. Prints the median over the draws.

    python benchmarks/design.py [draws]
"""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np

from analysis.design import Candidate, next_runs
from analysis.fitting import fit_law
from analysis.laws import Array
from analysis.moe_laws import GranularityLaw
from analysis.settings import FitSettings

TRUTH = np.array([0.9, 30.0, 300.0, 900.0, 0.6, 0.33, 0.35])
SIZES, TOKENS, GRAINS = 1e7 * 2.0 ** np.arange(6), 2e8 * 2.0 ** np.arange(5), [1.0, 4.0, 16.0]
GRID = np.array(list(itertools.product(SIZES, TOKENS, GRAINS)))
COST = GRID[:, 0] * GRID[:, 1]
TARGET = (SIZES[-1] * 4, TOKENS[-1] * 4, 8.0)
NOISE_SD = 0.005
SEEDS = 6
FIRST = 12
ROUNDS = 5
SHARE = 0.25
SETTINGS = FitSettings(replicates=100, starts=400)


def measured(rows: Array, rng: np.random.Generator) -> Array:
    return GranularityLaw.formula(TRUTH, *GRID[rows].T) * np.exp(
        NOISE_SD * rng.standard_normal(len(rows))
    )


def error(rows: Array, losses: Array) -> float:
    fit = fit_law(GranularityLaw, tuple(GRID[rows].T), losses, SETTINGS, name="loss")
    truth = float(GranularityLaw.formula(TRUTH, *TARGET))
    return abs(fit.predict(*TARGET).value / truth - 1)


def designed(rng: np.random.Generator) -> tuple[Array, Array]:
    rows = np.argsort(COST)[:FIRST]
    losses = measured(rows, rng)
    budget = SHARE * COST.sum()
    for step in range(1, ROUNDS + 1):
        fit = fit_law(GranularityLaw, tuple(GRID[rows].T), losses, SETTINGS, name="loss")
        pool = [
            Candidate(
                label=str(cell),
                x=tuple(GRID[cell]),
                cost=COST[cell],
                most=SEEDS - int((rows == cell).sum()),
            )
            for cell in range(len(GRID))
        ]
        room = budget * step / ROUNDS - COST[rows].sum()
        if room <= 0:
            continue
        chosen = [
            int(run.label) for run in next_runs(fit, tuple(GRID[rows].T), pool, TARGET, room).runs
        ]
        more = np.array(chosen, dtype=int)
        rows, losses = np.append(rows, more), np.append(losses, measured(more, rng))
    return rows, losses


def affordable(order: Array) -> Array:
    spent, rows = 0.0, []
    for cell in order:
        if spent + COST[cell] <= SHARE * COST.sum():
            rows.append(cell)
            spent += COST[cell]
    return np.array(rows)


def main(draws: int) -> None:
    results: dict[str, list[float]] = {}
    shares, counts = [], []
    began = time.process_time()
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        everything = np.arange(len(GRID))
        random = affordable(rng.permutation(len(GRID)))
        largest = affordable(np.argsort(-COST))
        rows, losses = designed(rng)
        shares.append(COST[rows].sum() / COST.sum())
        counts.append(len(rows))
        results.setdefault("full grid", []).append(error(everything, measured(everything, rng)))
        results.setdefault("design", []).append(error(rows, losses))
        results.setdefault("random", []).append(error(random, measured(random, rng)))
        if len(largest) > len(TRUTH):
            results.setdefault("largest first", []).append(error(largest, measured(largest, rng)))
    print(f"{draws} draws, grid of {len(GRID)} runs, {time.process_time() - began:.0f} s CPU")
    print(f"design: {np.median(shares):.1%} of the grid's compute, {np.median(counts):.0f} runs")
    for name, errors in results.items():
        middle, most = np.quantile(errors, [0.5, 0.9])
        print(f"{name:<16}median error {middle:.3%}, 90% below {most:.3%}")
    if "largest first" not in results:
        print(f"largest first    {len(largest)} runs for {len(TRUTH)} parameters: no fit possible")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 50)
