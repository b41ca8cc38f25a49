"""Optima against the lowest of many losses, limits of inverses, published numbers, sources."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.catalogue import LAWS
from analysis.data_laws import HALF_LIFE_TOKENS, OverTrainingLaw, RepetitionLaw
from analysis.hyperparam_laws import PlaneFit
from analysis.laws import LossSurface, least_loss
from analysis.leverage_law import LeverageLaw
from analysis.moe_laws import EfficiencyLeverage, GranularityLaw, JointExpertLaw, SparsityLaw
from analysis.results import FitError, Interval
from analysis.routed import RoutedLaw
from analysis.utilisation import UtilisationLaw
from model.errors import ConfigError

SURFACE = LossSurface(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
OVER = OverTrainingLaw(E=1.51, a=141.0, b=190.0, eta=0.121)
REPEATED = RepetitionLaw(E=1.87, A=521.0, B=1488.0, alpha=0.353, beta=0.353)
FINE = GranularityLaw(c=0.47, g=2.1, a=18.1, b=30.8, gamma=0.58, alpha=0.115, beta=0.147)
"""As published (arXiv:2402.07871, table 1)."""
JOINT = JointExpertLaw(
    c=1.3637, a=35.91, b=35.98, delta=-0.2285, alpha=0.1889, gamma=-0.0098,
    omega=0.5529, beta=0.1775, zeta=0.0259,
)  # fmt: skip
"""As published (arXiv:2502.05172, table 3)."""
SPARSE = SparsityLaw(
    e=0.9, a=900.0, b=600.0, c=0.02, d=70.0, alpha=0.4, beta=0.33, lambda_=0.5, delta=-0.12,
    gamma=0.25,
)  # fmt: skip
ROUTED = RoutedLaw(a=-0.082, b=-0.108, c=0.009 / np.log(10), d=2.5, E_start=1.8, E_max=315.0)
LEVER = LeverageLaw(E=1.5, a=40.0, b=0.05, be=0.0615, bd=-0.0038, bg=0.00084, bh=-0.0058)


def test_every_law_of_the_catalogue_has_an_inverse_and_names_its_source() -> None:
    """That the inverses undo their laws is held in test_law_study.py."""
    for name, law in LAWS.items():
        assert hasattr(law, "inverse"), name
        assert name == "power" or "arXiv:" in str(law.__doc__), name


OPTIMA = [
    (SURFACE, (), 6.0),
    (REPEATED, (1e10,), 6.0),
    (FINE.surface(8.0, 6.0), (), 6.0),
    (JOINT.surface(16.0, 6.0), (), 6.0),
    (SPARSE, (0.1,), 0.6),
]


@pytest.mark.parametrize(("law", "rest", "pair"), OPTIMA)
@pytest.mark.parametrize("flops", [1e19, 1e22, 1e24])
def test_an_optimum_is_the_lowest_loss_at_its_compute(
    law: LossSurface | RepetitionLaw | SparsityLaw,
    rest: tuple[float, ...],
    pair: float,
    flops: float,
) -> None:
    if isinstance(law, LossSurface):
        best = law.optimum(flops * law.flops_per_size_token / pair)
    else:
        best = law.optimum(flops, *rest, flops_per_size_token=pair)
    size = best.size * np.exp(np.linspace(-1, 1, 20_001))
    loss = law(size, flops / (pair * size), *rest)
    assert best.loss <= loss.min() * (1 + 1e-12)
    assert size[loss.argmin()] == pytest.approx(best.size, rel=3e-4)
    assert pair * best.size * best.tokens == pytest.approx(flops, rel=1e-9)


def test_where_one_power_alone_falls_with_size_its_inverse_is_exact() -> None:
    """Few of the experts at work: their share's power is far from one."""
    for alone in (replace(SPARSE, a=0.0, delta=-0.5), replace(SPARSE, d=0.0)):
        loss = float(alone(3e9, 2e10, 0.01))
        assert alone.inverse(loss, 2e10, 0.01) == pytest.approx(3e9, rel=1e-9)


def test_without_a_term_for_size_or_for_tokens_there_is_no_optimum() -> None:
    with pytest.raises(ConfigError, match="no compute-optimal size: no term falls with size"):
        replace(SPARSE, a=0.0, d=0.0).optimum(1e22, 0.1)
    with pytest.raises(ConfigError, match="no compute-optimal size: b = 0"):
        replace(SPARSE, b=0.0).optimum(1e22, 0.1)


def test_the_best_ratio_of_an_over_trained_model_and_what_it_reaches() -> None:
    ratio = OVER.optimal_ratio()
    for flops in (1e18, 1e24):
        losses = OVER(flops, ratio * np.exp(np.linspace(-1, 1, 2_001)))
        assert losses.argmin() == 1_000
        assert float(OVER.frontier()(flops)) == pytest.approx(float(losses.min()), rel=1e-12)
    for a, b in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="no best tokens a unit of size"):
            OverTrainingLaw(E=1.5, a=a, b=b, eta=0.1).optimal_ratio()


def test_repeated_tokens_move_the_optimum_to_larger_models() -> None:
    plain = REPEATED.optimum(1e22, 1e15, 6.0)
    assert plain.loss == pytest.approx(
        LossSurface(E=1.87, A=521.0, B=1488.0, alpha=0.353, beta=0.353, flops_per_size_token=6.0)
        .optimum(1e22)
        .loss
    )
    few = REPEATED.optimum(1e22, plain.tokens / 20, 6.0)
    assert few.size > 1.2 * plain.size
    assert few.loss > plain.loss
    assert few.tokens < plain.tokens


def test_the_published_surfaces_of_so_many_experts_come_back() -> None:
    """arXiv:2502.05172, table 4: what the joint formula of table 3 is at each number of experts."""
    table = {
        1: (30.3640, 0.1817, 53.9838, 0.1965),
        8: (21.8330, 0.1676, 119.9126, 0.2338),
        32: (16.5424, 0.1557, 234.6726, 0.2652),
    }
    for experts, row in table.items():
        one = JOINT.surface(experts)
        assert (one.A, one.alpha, one.B, one.beta) == pytest.approx(row, rel=3e-3)
        assert float(one(1e9, 2e10)) == pytest.approx(float(JOINT(1e9, 2e10, experts)))
    assert float(FINE.surface(4.0)(1e9, 2e10)) == pytest.approx(float(FINE(1e9, 2e10, 4.0)))


def test_where_routing_ends_to_help() -> None:
    size = ROUTED.cutoff_size()
    assert size == pytest.approx(10 ** (0.108 / 0.009), rel=1e-6)
    assert float(ROUTED(size, 1)) == pytest.approx(float(ROUTED(size, 256)))
    assert float(ROUTED(size / 10, 1)) > float(ROUTED(size / 10, 256))
    with pytest.raises(ConfigError, match="no size ends the gain"):
        RoutedLaw(a=-0.1, b=-0.1, c=-0.01, d=2.0, E_start=1.8, E_max=315.0).cutoff_size()


def test_a_leverage_beyond_what_no_active_expert_gives_is_refused() -> None:
    law = EfficiencyLeverage()
    assert law.inverse(float(law(0.05, 8, 1e21)), 8, 1e21) == pytest.approx(0.05)
    most = float(law(0.0, 8, 1e21))
    with pytest.raises(ConfigError, match=f"the limit is {most:.4g}"):
        law.inverse(1.01 * most, 8, 1e21)
    # At an exponent above 0 a mixture never pays, and it is the least that no expert gives.
    worse = replace(law, a=3.0)
    assert worse.inverse(float(worse(0.05, 8, 1e21)), 8, 1e21) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="never reached at granularity 8"):
        worse.inverse(0.99 * float(worse(0.0, 8, 1e21)), 8, 1e21)


def test_the_best_granularity_of_a_fitted_leverage_is_the_lowest_loss() -> None:
    fine = np.geomspace(1, 200, 4_001)
    lowest = fine[int(LEVER(1e21, 0.05, fine).argmin())]
    assert LEVER.best_granularity() == pytest.approx(lowest, rel=3e-3)


def test_an_optimal_setting_against_size_and_tokens_is_undone() -> None:
    def interval(value: float) -> Interval:
        return Interval(value=value, low=value - 0.1, high=value + 0.1)

    plane = PlaneFit(
        name="peak_lr", coefficient=1.79, size_exponent=interval(-0.713),
        token_exponent=interval(0.307), num_points=12, noise_sd=0.1, center=(20.0, 23.0),
        spread=((1.0, 0.0), (0.0, 1.0)), size_range=(1e8, 1e9), token_range=(1e9, 1e11),
        largest=1e20,
    )  # fmt: skip
    assert plane.inverse(plane(1e9, 3e10), 1e9) == pytest.approx(3e10)


def test_a_measure_without_a_law_says_so() -> None:
    with pytest.raises(FitError, match="dead_frac has no law: none of the 9 runs"):
        UtilisationLaw(name="dead_frac", fit=None, note="none of the 9 runs ...")(1e18)


def test_least_loss_closes_in_on_the_valley() -> None:
    found = least_loss(lambda size: np.log(size / 3e7) ** 2, 1e3, 1e12)
    assert found == pytest.approx(3e7, rel=1e-7)
    assert HALF_LIFE_TOKENS == 15.387756
