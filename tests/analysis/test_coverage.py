"""Intervals hold what they promise: 300 small sweeps drawn from a known surface."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.fitting import fit_surface
from analysis.laws import LossSurface
from analysis.points import Points
from analysis.results import FitStatus
from analysis.settings import FitSettings

DRAWS = 300
NOISE_SD = 0.004
SETTINGS = FitSettings(replicates=200, starts=200)
LOWEST, HIGHEST = 0.85, 0.95
MOST_CURVED = 0.09
"""One in twenty sound fits is called curved; more than 0.09 of 300 come up once in a thousand."""


@pytest.mark.slow
def test_ninety_percent_intervals_cover_about_ninety_percent(
    ladder_points: Callable[..., Points], truth: LossSurface
) -> None:
    """5 sizes by 4 budgets and 3 seeds: a newly measured loss 5 and 30 times beyond the largest
    run, and every coefficient, lie in their 90% intervals in 85 to 95% of the draws."""
    rng = np.random.default_rng(17)
    inside: Counter[str] = Counter()
    curved = 0
    for draw in range(DRAWS):
        fit = fit_surface(ladder_points(noise_sd=NOISE_SD, seed=draw), SETTINGS)
        fit = replace(fit, form_rate=0.0)  # the form is right here, so nothing is due for it
        for times in (5, 30):
            best = truth.optimum(times * fit.largest_compute)
            measured = best.loss * np.exp(NOISE_SD * rng.standard_normal())
            inside[f"{times}x"] += fit.predict(best.size, best.tokens).contains(measured)
        curved += FitStatus.CURVED in fit.statuses()
        for name, interval in fit.coefficients.items():
            inside[name] += interval.contains(getattr(truth, name))
    shares = {name: count / DRAWS for name, count in inside.items()}
    assert curved <= MOST_CURVED * DRAWS, curved
    assert all(LOWEST <= share <= HIGHEST for share in shares.values()), shares
