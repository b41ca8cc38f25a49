"""The one form of every law: its plain formula, its derivatives against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.data_laws import OverTrainingLaw, RepetitionLaw
from analysis.forms import Form, make_form
from analysis.laws import Array, LossSurface, PowerLaw, SaturatingPowerLaw
from analysis.logsum import Loss
from analysis.moe_laws import GranularityLaw, JointExpertLaw, SparsityLaw

POINTS = 12


RANGES = {
    "tokens": (1e5, 1e8),
    "unique_tokens": (1e6, 2e7),
    "num_experts": (4, 256),
    "granularity": (1, 16),
    "activation_ratio": (0.02, 1.0),
    "tokens_per_size": (1, 600),
}


def random_points(names: tuple[str, ...]) -> tuple[Array, ...]:
    rng = np.random.default_rng(3)
    ends = [np.log(RANGES.get(name, (2e4, 9e6))) for name in names]
    return tuple(np.exp(rng.uniform(low, high, POINTS)) for low, high in ends)


CASES: list[tuple[Any, list[float]]] = [
    (LossSurface, [1.7, 40.0, 90.0, 0.31, 0.42]),
    (SaturatingPowerLaw, [1.2, 30.0, 0.2]),
    (PowerLaw, [5.0, -0.15]),
    (OverTrainingLaw, [1.5, 14.0, 19.0, 0.12]),
    (RepetitionLaw, [1.7, 40.0, 90.0, 0.31, 0.42]),
    (GranularityLaw, [0.5, 2.1, 18.1, 30.8, 0.58, 0.115, 0.147]),
    (JointExpertLaw, [1.2, 35.0, 60.0, -0.1, 0.3, -0.01, 0.1, 0.28, 0.005]),
    (SparsityLaw, [0.9, 16.0, 40.0, 0.02, 7.0, 0.4, 0.3, 0.5, -0.12, 0.2]),
]


def made(law: Any, parameters: list[float]) -> tuple[Form, tuple[Array, ...]]:
    columns = random_points(law.VARIABLES)
    return make_form(law, columns, law.formula(parameters, *columns)), columns


@pytest.mark.parametrize(("law", "parameters"), CASES)
def test_equals_the_plain_formula(law: Any, parameters: list[float]) -> None:
    form, columns = made(law, parameters)
    theta = form.encode(np.array([parameters]))
    expected = np.log(law.formula(parameters, *columns))
    np.testing.assert_allclose(form.logsum.log_values(theta)[0], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(form.decode(theta)[0], parameters, rtol=1e-10)


def test_a_coefficient_at_its_floor_is_reported_as_zero() -> None:
    form, _ = made(LossSurface, [1.7, 40.0, 90.0, 0.31, 0.42])
    theta = form.encode(np.array([[0.0, 40.0, 90.0, 0.31, 0.42]]))
    assert form.decode(theta)[0, 0] == 0.0


@pytest.mark.parametrize(("law", "parameters"), CASES)
def test_jacobian_against_central_differences(law: Any, parameters: list[float]) -> None:
    form, _ = made(law, parameters)
    theta = form.encode(np.array([parameters]))[0]
    step = 1e-5
    numeric = np.stack(
        [
            (form.logsum.log_values(theta[None] + e) - form.logsum.log_values(theta[None] - e))[0]
            / (2 * step)
            for e in step * np.eye(len(theta))
        ],
        axis=1,
    )
    np.testing.assert_allclose(form.logsum.jacobian(theta), numeric, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("delta", [1e-3, 0.05, np.inf])
@pytest.mark.parametrize(("law", "parameters"), CASES)
def test_gradient_and_hessian_of_the_robust_objective(
    law: Any, parameters: list[float], delta: float
) -> None:
    form, columns = made(law, parameters)
    rng = np.random.default_rng(5)
    log_loss = np.log(law.formula(parameters, *columns)) + 0.05 * rng.standard_normal(POINTS)
    weight = rng.uniform(0.5, 2.0, POINTS)
    loss = Loss(kind="huber", delta=delta)
    theta = form.encode(np.array([parameters]))[0]

    def objective(at: Array) -> float:
        return float((weight * loss.rho(log_loss - form.logsum.log_values(at[None])[0])).sum())

    def gradient(at: Array) -> Array:
        log_values, shares = form.logsum.shares(at[None])
        slope = weight * loss.slope(log_loss - log_values)
        return -form.logsum.gradient(shares, slope)[0]

    step = 1e-6
    unit = step * np.eye(len(theta))
    numeric = [(objective(theta + e) - objective(theta - e)) / (2 * step) for e in unit]
    np.testing.assert_allclose(gradient(theta), numeric, rtol=1e-5, atol=1e-8)

    log_values, shares = form.logsum.shares(theta[None])
    residual = log_loss - log_values
    inner = np.where(np.abs(residual) <= delta, weight, 0.0)
    hessian = form.logsum.curvature(shares, inner, weight * loss.slope(residual))[0]
    numeric_hessian = np.stack(
        [(gradient(theta + e) - gradient(theta - e)) / (2 * step) for e in unit]
    )
    np.testing.assert_allclose(hessian, numeric_hessian, rtol=1e-4, atol=1e-6)


def test_huber_is_squares_inside_and_absolute_outside() -> None:
    loss = Loss(kind="huber", delta=0.1)
    np.testing.assert_allclose(loss.rho(np.array([0.05, -0.05])), 0.00125)
    np.testing.assert_allclose(loss.rho(np.array([1.0, -1.0])), 0.1 * (1 - 0.05))
    squares = Loss(kind="squares", delta=np.inf)
    np.testing.assert_allclose(squares.rho(np.array([3.0])), 4.5)
