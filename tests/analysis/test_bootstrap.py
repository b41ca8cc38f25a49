"""The bootstrap's draws are held a part at a time, and no digit hangs on the parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis import bootstrap
from analysis.allocation import exponents
from analysis.fitting import fit_surface
from analysis.laws import LossSurface, SaturatingPowerLaw
from analysis.logsum import BLOCK_ELEMENTS
from analysis.points import Points
from analysis.settings import FitSettings
from analysis.solving import solve
from analysis.summary_lines import coefficient_lines


def test_parts_give_the_same_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = np.geomspace(1e16, 1e20, 4000)
    law = SaturatingPowerLaw(E=1.6, a=95.0, b=0.094)
    losses = law(flops) * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(flops)))
    solved = solve(SaturatingPowerLaw, (flops,), losses, FitSettings(starts=100))
    whole = bootstrap.replicate(solved, np.log(losses), 50, seed=3)
    monkeypatch.setattr(bootstrap, "HELD_ELEMENTS", 1)
    assert BLOCK_ELEMENTS // len(flops) < 50, "there is more than one part"
    np.testing.assert_array_equal(bootstrap.replicate(solved, np.log(losses), 50, seed=3), whole)


def test_an_interval_stays_within_what_its_law_allows(
    ladder_points: Callable[..., Points],
) -> None:
    """Nine noisy runs: stretched, the interval of an exponent once ended at -0.14."""
    law = LossSurface(E=1.7, A=50.35, B=69.3, alpha=0.2, beta=0.37)
    rng = np.random.default_rng(0)
    exponents_R2 = np.clip(law.alpha + 0.3 * rng.standard_normal((400, 2)), 0.01, 3.0)
    rows = np.tile(np.array(law.parameters), (400, 1))
    rows[:, 3:] = exponents_R2
    found = bootstrap.intervals(law, rows, 0.9, 3.0)
    assert found["alpha"].low == 0.01
    assert 0.4 < found["alpha"].high < 3.0
    fit = fit_surface(ladder_points(noise_sd=0.004), FitSettings(starts=100, replicates=100))
    wide = replace(fit, law=law, coefficients=found, replicates=tuple(map(tuple, rows)))
    (alpha,) = [line for line in coefficient_lines(wide, 0.9) if line.split()[0] == "alpha"]
    assert alpha.endswith("(lower end: as far as the law allows)")
    assert not any("law allows" in line for line in coefficient_lines(fit, 0.9))
    size, tokens = exponents(replace(wide, noise_df=1.0))
    assert (size.low, size.high, tokens.low, tokens.high) == (0.0, 1.0, 0.0, 1.0)


def test_intervals_by_hand() -> None:
    """A coefficient's in log, an exponent's as it is, both made wider by Student's quantile."""
    law = LossSurface(E=0.5, A=50.0, B=70.0, alpha=0.3, beta=0.4)
    step_R = np.linspace(-1.0, 1.0, 2001)  # its central 90% ends at -0.9 and 0.9
    rows = np.tile(np.array(law.parameters), (2001, 1))
    rows[:, :3] *= np.exp(0.1 * step_R)[:, None]
    rows[:, 3] += 0.05 * step_R
    rows[:, 4] = 0.4
    found = bootstrap.intervals(law, rows, 0.9, 5.0)
    stretch = 2.015048 / 1.644854  # Student's 95% quantile at 5 degrees of freedom, the normal one
    for name in ("E", "A", "B"):
        value = getattr(law, name)
        expected = np.exp([-0.09 * stretch, 0.09 * stretch]) * value
        assert (found[name].low, found[name].high) == pytest.approx(tuple(expected), rel=1e-6)
    reach = 0.045 * stretch
    assert (found["alpha"].low, found["alpha"].high) == pytest.approx((0.3 - reach, 0.3 + reach))
    assert (found["beta"].low, found["beta"].value, found["beta"].high) == (0.4, 0.4, 0.4)
    assert all(interval.level == 0.9 for interval in found.values())
