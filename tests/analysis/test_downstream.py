"""The law of a task's error: a known one comes back, noisy errors as scipy weighs them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from analysis.downstream import DownstreamLaw
from analysis.downstream_fit import fit_downstream, solve_downstream
from analysis.settings import FitSettings
from model.errors import ConfigError

TRUTH = DownstreamLaw(epsilon=0.85, k=2.1, gamma=0.75)
LOSS = np.linspace(2.2, 4.5, 14)


def test_a_known_law_comes_back_and_its_inverse_with_it() -> None:
    found = fit_downstream(LOSS, TRUTH(LOSS), FitSettings(replicates=100)).law
    assert found.parameters == pytest.approx(TRUTH.parameters, rel=1e-5)
    assert isinstance(found, DownstreamLaw)
    assert found.inverse(float(TRUTH(3.1))) == pytest.approx(3.1)
    with pytest.raises(ConfigError, match="lies above every loss's"):
        found.inverse(0.851)
    with pytest.raises(ConfigError, match="lies above every loss's"):
        found.inverse(found.epsilon)  # no loss is that high


def test_weights_count_as_in_least_squares() -> None:
    rng = np.random.default_rng(3)
    weight = np.where(LOSS > 3.2, 9.0, 1.0)
    error = TRUTH(LOSS) + 0.01 * rng.standard_normal(len(LOSS))
    found = solve_downstream(LOSS, error, weight)
    expected, _ = curve_fit(
        lambda loss, epsilon, k, gamma: epsilon - k * np.exp(-gamma * loss),
        LOSS,
        error,
        p0=TRUTH.parameters,
        sigma=weight**-0.5,
    )
    assert found == pytest.approx(expected, rel=1e-4)
    plain = solve_downstream(LOSS, error, np.ones(len(LOSS)))
    assert abs(found[2] / plain[2] - 1) > 0.01, "or the weights would not be seen"


def test_what_is_no_share_of_wrong_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"errors are shares of wrong answers, .* got 1\.02"):
        fit_downstream(LOSS, np.linspace(0.5, 1.02, 14))
