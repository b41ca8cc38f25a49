"""Leverage between two known ladders, and the leverage law through measured leverages."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from analysis.fitting import fit_surface, frontier_fit
from analysis.laws import LossSurface
from analysis.leverage import fit_leverage, measured_leverage
from analysis.moe_laws import EfficiencyLeverage
from analysis.points import Points
from analysis.results import FitError
from analysis.settings import FitSettings
from model.errors import ConfigError

Draw = Callable[..., Points]
QUICK = FitSettings(replicates=200, starts=300)
MOE = LossSurface(E=1.7, A=50.35, B=69.3, alpha=0.35, beta=0.37)


def dense_of(leverage: float) -> LossSurface:
    """The surface whose frontier needs ``leverage`` times the compute: sizes are worth less."""
    return LossSurface(E=1.7, A=50.35 * leverage**0.35, B=69.3, alpha=0.35, beta=0.37)


def test_leverage_of_two_known_ladders(ladder_points: Draw) -> None:
    dense = frontier_fit(fit_surface(ladder_points(dense_of(3.0), noise_sd=0.002), QUICK))
    moe = frontier_fit(fit_surface(ladder_points(MOE, noise_sd=0.002, seed=1), QUICK))
    found = measured_leverage(moe, dense, 1e15)
    assert found.leverage.contains(3.0)
    assert found.leverage.low > 1.0
    assert found.unreached_frac < 0.1
    same = measured_leverage(moe, moe, 1e15)
    assert same.leverage.value == pytest.approx(1.0)


def test_leverage_without_noise_is_exact(ladder_points: Draw) -> None:
    dense = frontier_fit(fit_surface(ladder_points(dense_of(5.0)), QUICK))
    moe = frontier_fit(fit_surface(ladder_points(MOE), QUICK))
    assert measured_leverage(moe, dense, 1e16).leverage.value == pytest.approx(5.0, rel=1e-4)


def test_a_loss_the_dense_law_never_reaches(ladder_points: Draw) -> None:
    worse = LossSurface(E=2.3, A=50.0, B=70.0, alpha=0.35, beta=0.37)
    dense = frontier_fit(fit_surface(ladder_points(worse, noise_sd=0.001), QUICK))
    moe = frontier_fit(fit_surface(ladder_points(MOE, noise_sd=0.001), QUICK))
    with pytest.raises(FitError, match="never reached by the dense law"):
        measured_leverage(moe, dense, 1e20)
    with pytest.raises(ConfigError, match="use frontier_fit"):
        measured_leverage(fit_surface(ladder_points(MOE), QUICK), dense, 1e15)


def test_the_leverage_law_comes_back_from_its_values() -> None:
    truth = EfficiencyLeverage()
    grid = itertools.product([0.008, 0.016, 0.03, 0.1, 0.3], [2, 4, 8, 12], [1e18, 1e19, 1e20])
    activation, granularity, flops = np.array(list(grid)).T
    found = fit_leverage(
        activation.tolist(), granularity.tolist(), flops.tolist(),
        truth(activation, granularity, flops).tolist(),
    )  # fmt: skip
    for name in ("a", "d", "gamma", "beta", "A_start"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3), name
    assert found.best_granularity() == pytest.approx(truth.best_granularity(), rel=1e-3)
    with pytest.raises(FitError, match="3 leverages"):
        fit_leverage([0.1] * 3, [2.0] * 3, [1e18] * 3, [1.0] * 3)
