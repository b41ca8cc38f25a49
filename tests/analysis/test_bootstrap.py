"""The bootstrap's draws are held a part at a time, and no digit hangs on the parts."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import bootstrap
from analysis.laws import SaturatingPowerLaw
from analysis.logsum import BLOCK_ELEMENTS
from analysis.settings import FitSettings
from analysis.solving import solve


def test_parts_give_the_same_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = np.geomspace(1e16, 1e20, 4000)
    law = SaturatingPowerLaw(E=1.6, a=95.0, b=0.094)
    losses = law(flops) * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(flops)))
    solved = solve(SaturatingPowerLaw, (flops,), losses, FitSettings(starts=100))
    whole = bootstrap.replicate(solved, np.log(losses), 50, seed=3)
    monkeypatch.setattr(bootstrap, "HELD_ELEMENTS", 1)
    assert BLOCK_ELEMENTS // len(flops) < 50, "there is more than one part"
    np.testing.assert_array_equal(bootstrap.replicate(solved, np.log(losses), 50, seed=3), whole)
