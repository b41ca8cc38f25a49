"""How often 90% intervals of the efficiency leverage hold the truth, beside the plain way.

Trials are drawn from known worlds: the laptop's law or Chinchilla's as the baseline, a variant with
so many times what the baseline has left to learn. Half of a run's noise is shared by its pair.
Printed at the smallest, middle and largest compute of each ladder: the true leverage, the share of
intervals that hold it and their median width in ln EL; once as `windtunnel compare` reads them,
once as the paired gap over one exponent of all the baseline's runs. Three seconds a row of 100
draws, 64 rows.

    python benchmarks/leverage.py [draws]
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np

from analysis.laws import Array, LossSurface
from analysis.leverage import LeverageMeter, PairedLosses
from analysis.line import Line

LAPTOP = LossSurface(E=1.02, A=0.385 * 9e4**0.70, B=0.965 * 163_840**0.46, alpha=0.70, beta=0.46)
CHINCHILLA = LossSurface(E=1.69, A=406.4 * 6**0.34, B=410.7, alpha=0.34, beta=0.28)
"""Size in FLOPs per token, six a parameter."""
WORLDS = {
    "laptop": (LAPTOP, 9e4, 163_840, (0.003, 0.01)),
    "chinchilla": (CHINCHILLA, 1.2e8, 4e8, (0.002, 0.005)),
}
"""The baseline, the smallest size and token count, the noise of a run in log-loss."""
LEFT = (1.1, 1.0, 0.9, 0.7)
"""What a variant has left to learn over what the baseline has."""
LADDERS = {"2x2 +2 seeds": (2, 2, 1), "3x2x2": (3, 2, 2), "3x3x2": (3, 3, 2), "5x4": (5, 4, 1)}


def grid(shape: tuple[int, int, int], size: float, tokens: float) -> tuple[Array, Array]:
    """M and D of every run; of the smallest ladder the last cell three times."""
    sizes, budgets, seeds = shape
    size_N = np.repeat(size * 1.8 ** np.arange(sizes), budgets * seeds)
    tokens_N = np.tile(np.repeat(tokens * 2.15 ** np.arange(budgets), seeds), sizes)
    rows = [*range(len(size_N)), *([3, 3] if shape == (2, 2, 1) else [])]
    return size_N[rows], tokens_N[rows]


def truth(law: LossSurface, left: float, size: float, tokens: float) -> float:
    """ln EL where size and tokens grow alike, by bisection."""
    target, low, high = law.E + left * (float(law(size, tokens)) - law.E), -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        grown = float(law(size * np.exp(middle / 2), tokens * np.exp(middle / 2)))
        low, high = (middle, high) if grown > target else (low, middle)
    return middle


def drawn(
    law: LossSurface, left: float, runs: tuple[Array, Array], sd: float, seed: int
) -> PairedLosses:
    """One trial."""
    size_N, tokens_N = runs
    rng = np.random.default_rng(seed)
    shared, *own = sd * 0.5**0.5 * rng.standard_normal((3, len(size_N)))
    loss_N = law(size_N, tokens_N)
    return PairedLosses(
        size_N=size_N,
        tokens_N=tokens_N,
        baseline_N=loss_N * np.exp(shared + own[0]),
        variant_N=(law.E + left * (loss_N - law.E)) * np.exp(shared + own[1]),
        dearer_N=np.zeros(len(size_N)),
    )


def measured(found: PairedLosses, log_flops: list[float]) -> Array:
    """Ends of the intervals of ln EL, [place, 2]; what is not reached is infinite."""
    meter = LeverageMeter(found)
    places = [meter.at(float(np.exp(at))) for at in log_flops]
    ends = np.array([[place.low, place.high] for place in places], dtype=float)
    return np.log(np.where(np.isnan(ends), np.inf, ends))


def by_one_exponent(found: PairedLosses, log_flops: list[float]) -> Array:
    """The same from the gap's line over the slope of the baseline's, both drawn."""
    log_N, rng = np.log(found.size_N * found.tokens_N), np.random.default_rng(0)
    gap = Line(log_N, np.log(found.variant_N / found.baseline_N))
    base = Line(log_N, np.log(found.baseline_N))
    slope_R = base.slope_sd * rng.standard_t(base.degrees, 4000) - base.slope
    t_R = rng.standard_t(gap.degrees, 4000)
    draws = [-(gap.value(at) + gap.sd(at) * t_R) / np.maximum(slope_R, 1e-6) for at in log_flops]
    return np.quantile(draws, [0.05, 0.95], axis=1).T


def main(draws: int) -> None:
    """A row a world, ladder, variant and noise."""
    print(
        f"{'baseline':10s}  {'ladder':12s}  left  noise  {'true EL':17s}   "
        f"{'compare holds':17s}   {'width':17s}   {'one exponent holds':17s}  width"
    )
    for (world, (law, size, tokens, noises)), (ladder, shape) in product(
        WORLDS.items(), LADDERS.items()
    ):
        runs = grid(shape, size, tokens)
        log_N, ratio = np.log(runs[0] * runs[1]), np.log(runs[0] / runs[1]).mean()
        at = [float(log_N.min()), float(log_N.mean()), float(log_N.max())]
        for left, sd in product(LEFT, noises):
            true = [truth(law, left, np.exp((c + ratio) / 2), np.exp((c - ratio) / 2)) for c in at]
            said = f"{world:10s}  {ladder:12s}  {left:4.1f}  {sd:5.3f}  {_row(np.exp(true))}"
            for way in (measured, by_one_exponent):
                ends = np.array(
                    [way(drawn(law, left, runs, sd, seed), at) for seed in range(draws)]
                )
                held = ((ends[..., 0] <= true) & (ends[..., 1] >= true)).mean(axis=0)
                width = np.median(ends[..., 1] - ends[..., 0], axis=0)
                said += f"   {_row(held)}   {_row(width)}"
            print(said, flush=True)


def _row(values: Array) -> str:
    return " ".join(f"{value:5.2f}" for value in values)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100)
