"""Laws of over-training, repetition and mixtures: known parameters come back, limits, constants."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from analysis.catalogue import LAWS
from analysis.data_laws import HALF_LIFE_TOKENS, OverTrainingLaw, RepetitionLaw, effective_tokens
from analysis.fitting import fit_law, fit_points
from analysis.laws import LossSurface
from analysis.moe_laws import EfficiencyLeverage, GranularityLaw, JointExpertLaw, SparsityLaw
from analysis.points import OWN_COLUMNS, make_points
from analysis.results import Fit, FitError
from analysis.settings import FitSettings
from model.errors import ConfigError

QUICK = FitSettings(replicates=100, starts=1000)
SIZES, TOKENS = 1e7 * 4.0 ** np.arange(4), 2e8 * 4.0 ** np.arange(4)

TRUTHS: list[tuple[Any, list[float], tuple[float, ...]]] = [
    (OverTrainingLaw, [1.5, 14.0, 19.0, 0.12], ()),
    (RepetitionLaw, [1.7, 480.0, 2100.0, 0.35, 0.37], (1e8, 1e9)),
    (GranularityLaw, [0.9, 30.0, 300.0, 900.0, 0.6, 0.33, 0.35], (1.0, 2.0, 4.0, 8.0, 16.0)),
    (JointExpertLaw, [1.2, 900.0, 600.0, -0.15, 0.35, -0.01, 0.1, 0.31, 0.005], (4.0, 16.0, 64.0)),
]


def grid(law: Any, thirds: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    if law is OverTrainingLaw:
        size, tokens = np.array(list(itertools.product(SIZES, TOKENS))).T
        return 6 * size * tokens, tokens / size
    return tuple(np.array(list(itertools.product(SIZES, TOKENS, thirds))).T)


@pytest.mark.parametrize(("law", "parameters", "thirds"), TRUTHS)
def test_parameters_come_back_without_noise(
    law: Any, parameters: list[float], thirds: tuple[float, ...]
) -> None:
    columns = grid(law, thirds)
    fit = fit_law(law, columns, law.formula(parameters, *columns), QUICK, name="loss")
    np.testing.assert_allclose(fit.law.parameters, parameters, rtol=1e-6)


def test_sparsity_law_predicts() -> None:
    """Ten parameters, some of which trade off: judged by its forecast."""
    parameters = [0.9, 900.0, 600.0, 0.02, 70.0, 0.4, 0.33, 0.5, -0.12, 0.25]
    columns = grid(SparsityLaw, (0.03, 0.1, 0.3, 1.0))
    fit = fit_law(
        SparsityLaw, columns, SparsityLaw.formula(parameters, *columns), QUICK, name="loss"
    )
    beyond = (1e10, 4e11, 0.05)
    expected = float(SparsityLaw.formula(parameters, *beyond))
    assert fit.predict(*beyond).value == pytest.approx(expected, rel=2e-3)


def test_every_law_of_the_catalogue_reads_back_from_its_fit() -> None:
    from model.typed import build, to_plain

    columns = grid(GranularityLaw, (1.0, 4.0))
    truth = [0.9, 30.0, 300.0, 900.0, 0.6, 0.33, 0.35]
    values = GranularityLaw.formula(truth, *columns)
    fit = fit_law(GranularityLaw, columns, values, QUICK, name="loss")
    assert build(Fit, to_plain(fit)) == fit
    for law in LAWS.values():
        assert set(law.EXPONENTS) < set(law.PARAMETERS)


def test_over_training_is_a_surface_of_equal_exponents() -> None:
    law = OverTrainingLaw(E=1.51, a=141.0, b=190.0, eta=0.121)
    size, tokens = 3e8, 9e10
    flops = 6 * size * tokens
    a, b = 141.0 * 6**-0.121, 190.0 * 6**-0.121
    surface = LossSurface(E=1.51, A=a, B=b, alpha=0.242, beta=0.242, flops_per_size_token=6.0)
    assert float(law(flops, tokens / size)) == pytest.approx(float(surface(size, tokens)))
    best = surface.optimum(flops)
    assert law.optimal_ratio() == pytest.approx(best.tokens / best.size)
    assert law.inverse(float(law(flops, 300.0)), 300.0) == pytest.approx(flops)
    with pytest.raises(ConfigError, match="irreducible"):
        law.inverse(1.4, 20.0)


def test_repeated_tokens_are_worth_less_and_less() -> None:
    assert effective_tokens(5e8, 1e9) == 5e8, "no token was repeated"
    four = float(effective_tokens(4e9, 1e9))
    assert 0.9 * 4e9 < four < 4e9, "up to four passes repeated data is nearly as good as new"
    assert float(effective_tokens(1e13, 1e9)) == pytest.approx(1e9 * (1 + HALF_LIFE_TOKENS))
    slope = (float(effective_tokens(1e9 + 1, 1e9)) - 1e9) / 1
    assert slope == pytest.approx(1.0, abs=1e-3), "the second pass begins as good as the first"
    law = RepetitionLaw(E=1.7, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    assert law.inverse(float(law(1e9, 7e9, 1e9)), 1e9, 1e9) == pytest.approx(7e9)
    assert law.inverse(float(law(1e9, 5e8, 1e9)), 1e9, 1e9) == pytest.approx(5e8)
    with pytest.raises(ConfigError, match="however often they are repeated"):
        law.inverse(1.8, 1e9, 1e8)


def test_a_law_whose_variable_is_missing_names_it() -> None:
    points = make_points(
        size_variable="N", label=["a", "b"], size=np.array([1e7, 2e7]),
        tokens=np.array([1e9, 2e9]), loss=np.array([3.0, 2.9]), flops=np.array([6e16, 2.4e17]),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="the krajewski law needs granularity, which the points"):
        fit_points(GranularityLaw, points, QUICK)


def test_efficiency_leverage_gives_the_published_numbers() -> None:
    """arXiv:2507.17702: above 7 at A = 3.1%, G = 12, 1e22 FLOPs; the best granularity near 12."""
    law = EfficiencyLeverage()
    assert float(law(0.031, 12, 1e22)) == pytest.approx(7.24, abs=0.01)
    assert law.best_granularity() == pytest.approx(11.3, abs=0.1)
    assert float(law(1.0, 12, 1e22)) == pytest.approx(0.99, abs=0.01)
    ours = [float(law(9 / 257, 8, flops)) for flops in (1e20, 1e21, 1e22, 1e23)]
    assert ours == pytest.approx([4.32, 5.41, 6.79, 8.51], abs=0.01)
    assert law.inverse(float(law(0.05, 8, 1e21)), 8, 1e21) == pytest.approx(0.05)


@pytest.mark.parametrize("word", LAWS)
def test_messages_call_a_law_by_the_word_it_is_chosen_with(word: str) -> None:
    law = LAWS[word]
    few = np.linspace(0.1, 0.9, len(law.PARAMETERS))
    extra = {name: tuple(few) for name in law.VARIABLES if name not in OWN_COLUMNS}
    points = make_points(
        size_variable="N", label=[f"row {n}" for n in few], size=few, tokens=few, loss=few,
        flops=few, extra=extra,
    )  # fmt: skip
    with pytest.raises(FitError, match=rf"^loss: .* of the {word} law leave nothing"):
        fit_points(law, points, QUICK)
