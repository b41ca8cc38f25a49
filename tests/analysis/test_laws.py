"""Laws: inverses, optima against brute force, closed forms against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.laws import LossSurface, PowerLaw, SaturatingPowerLaw
from model.errors import ConfigError

CHINCHILLA = LossSurface(
    E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658, flops_per_size_token=6.0
)


@pytest.mark.parametrize("flops", [1e18, 5.76e23])
def test_optimum_is_the_lowest_loss_at_its_compute(flops: float) -> None:
    best = CHINCHILLA.optimum(flops)
    size = best.size * np.exp(np.linspace(-1, 1, 20_001))
    loss = CHINCHILLA(size, flops / (6 * size))
    assert loss.min() == pytest.approx(best.loss, rel=1e-9)
    assert size[loss.argmin()] == pytest.approx(best.size, rel=2e-4)
    assert 6 * best.size * best.tokens == pytest.approx(flops, rel=1e-12)


def test_frontier_and_optimal_power_laws_agree_with_the_optimum() -> None:
    for flops in (1e15, 1e21, 3.8e25):
        best = CHINCHILLA.optimum(flops)
        assert CHINCHILLA.frontier()(flops) == pytest.approx(best.loss, rel=1e-12)
        assert CHINCHILLA.optimal_size()(flops) == pytest.approx(best.size, rel=1e-12)
        assert CHINCHILLA.optimal_tokens()(flops) == pytest.approx(best.tokens, rel=1e-12)


def test_the_published_refit_recommends_its_published_size() -> None:
    """Besiroglu et al., arXiv:2404.10102: about 20 tokens a parameter at Chinchilla's compute."""
    best = CHINCHILLA.optimum(5.76e23)
    assert 15 < best.tokens / best.size < 30


def test_inverses() -> None:
    assert PowerLaw(a=3.0, b=-0.15).inverse(float(PowerLaw(a=3.0, b=-0.15)(7e9))) == pytest.approx(
        7e9
    )
    law = SaturatingPowerLaw(E=1.6, a=95.18, b=0.0941)
    assert law.inverse(float(law(1e21))) == pytest.approx(1e21)
    assert CHINCHILLA.inverse(CHINCHILLA.optimum(2e22).loss) == pytest.approx(2e22)
    loss = float(CHINCHILLA(7e9, 3e11))
    assert CHINCHILLA.tokens_for(loss, 7e9) == pytest.approx(3e11)


def test_a_loss_below_the_limit_is_refused_with_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"irreducible loss is 1\.8172"):
        CHINCHILLA.inverse(1.8)
    floor = 1.8172 + 482.01 * 1e9**-0.3478  # what no number of tokens takes from 1e9 parameters
    with pytest.raises(ConfigError, match=f"its limit is {floor:g} nats"):
        CHINCHILLA.tokens_for(1.9, 1e9)
    with pytest.raises(ConfigError, match="exponent 0"):
        PowerLaw(a=1.0, b=0.0).inverse(2.0)


def test_formula_broadcasts_replicates_over_points() -> None:
    replicates = np.stack([CHINCHILLA.parameters, CHINCHILLA.parameters * 1.01])
    sizes = np.array([1e8, 1e9, 1e10])
    losses = LossSurface.formula(replicates[:, None], sizes, 2e10)
    assert losses.shape == (2, 3)
    assert losses[0] == pytest.approx(CHINCHILLA(sizes, 2e10))
