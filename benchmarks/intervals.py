"""What 90% intervals of a forecast cover, where the law holds and where it does not.

Ladders of 5 sizes by 4 budgets and 3 further seeds are drawn from known worlds with 0.4% noise.
Each fit is made as `windtunnel fit` makes it, hold-outs and widening included, and asked for a run
5 and 30 times beyond the largest, size and tokens grown alike. Printed for each world: how often
the fit saw that its form is wrong, then the share of measured losses inside at both and the median
half width, first as the bootstrap and the noise say, then with what the misses say, then as a user
gets it, with what the form was off by on published tables as well.

    python benchmarks/intervals.py [draws]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from analysis.laws import Array, LossSurface
from analysis.points import Points, make_points
from analysis.results import Fit
from analysis.settings import FitSettings
from analysis.study import make_study

LAW = LossSurface(E=1.7, A=50.35, B=69.3, alpha=0.35, beta=0.37)
SIZES, TOKENS = 1e6 * 2.0 ** np.arange(5), 2e6 * 2.0 ** np.arange(4)
NOISE_SD = 0.004
FAR = (5.0, 30.0)
SETTINGS = FitSettings(starts=200, replicates=200)
World = Callable[[Array, Array], Array]


def broken(at: float, before: float, after: float) -> World:
    """The token term falls with one exponent before ``at`` and another after it."""

    def world(size: Array, tokens: Array) -> Array:
        level = LAW.B * at**-LAW.beta
        exponent = np.where(tokens < at, before, after)
        return LAW.E + LAW.A * size**-LAW.alpha + level * (tokens / at) ** -exponent

    return world


def offset(size: Array, tokens: Array) -> Array:
    return LAW(size, tokens + 8e6)


def dropped(size: Array, tokens: Array) -> Array:
    return LAW(size, tokens) * np.where(tokens >= 1.6e7, 0.88, 1.0)


def shaken(size: Array, tokens: Array) -> Array:
    """The law, but its largest run is a tenth of an outlier: 3% low."""
    top = (size == SIZES[-1]) & (tokens == TOKENS[-1])
    return LAW(size, tokens) * np.where(top, 0.97, 1.0)


WORLDS: dict[str, World] = {
    "the law itself": LAW,
    "tokens offset by 8M": offset,
    "broken before the ladder (1M)": broken(1e6, 0.1, 0.37),
    "broken in its lower half (4M)": broken(4e6, 0.2, 0.5),
    "broken in its upper half (8M)": broken(8e6, 0.1, 0.6),
    "broken at its top (11M)": broken(1.13e7, 0.37, 1.2),
    "a drop of 12% at its top": dropped,
    "broken upwards (8M)": broken(8e6, 0.6, 0.2),
    "its largest run 3% low": shaken,
}


def drawn(world: World, seed: int) -> Points:
    size = np.concatenate([np.repeat(SIZES, 4), np.full(3, SIZES[1])])
    tokens = np.concatenate([np.tile(TOKENS, 5), np.full(3, TOKENS[1])])
    noise = np.exp(NOISE_SD * np.random.default_rng(seed).standard_normal(len(size)))
    return make_points(
        size_variable="flops_per_token",
        label=[f"run {index}" for index in range(len(size))],
        size=size,
        tokens=tokens,
        flops=size * tokens,
        loss=world(size, tokens) * noise,
    )


def truth(world: World, times: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Size, tokens and one measured loss so many times beyond the largest run."""
    size, tokens = SIZES[-1] * times**0.5, TOKENS[-1] * times**0.5
    if world is shaken:
        world = LAW
    loss = float(world(np.array(size), np.array(tokens)))
    return size, tokens, loss * float(np.exp(NOISE_SD * rng.standard_normal()))


def main(draws: int) -> None:
    began = time.process_time()
    print(f"{draws} draws a world, intervals of 90%, a measured loss 5 and 30 times beyond")
    columns = "".join(f"{title:>28}" for title in ("runs alone", "with misses", "with the form"))
    print(f"{'world':<32}{'seen':>6}{columns}")
    for name, world in WORLDS.items():
        seen, inside, widths = 0, np.zeros((3, 2)), np.zeros((3, 2, draws))
        for draw in range(draws):
            rng = np.random.default_rng(10_000 + draw)
            fit = make_study("x", drawn(world, draw), (), SETTINGS).surface
            seen += fit.drift is not None
            formless = replace(fit, form_rate=0.0)
            fits: list[Fit] = [replace(formless, drift=None), formless, fit]
            for far, times in enumerate(FAR):
                size, tokens, measured = truth(world, times, rng)
                for index, each in enumerate(fits):
                    forecast = each.predict(size, tokens)
                    inside[index, far] += forecast.contains(measured)
                    widths[index, far, draw] = forecast.width / 2 / forecast.value
        shares, middle = inside / draws, np.median(widths, axis=2)
        cells = (
            f"{share[0]:.2f}, {share[1]:.2f}; {half[0]:.1%}, {half[1]:.1%}"
            for share, half in zip(shares, middle, strict=True)
        )
        line = "".join(f"{cell:>28}" for cell in cells)
        print(f"{name:<32}{seen / draws:>6.0%}{line}", flush=True)
    print(f"{time.process_time() - began:.0f} s CPU")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 40)
