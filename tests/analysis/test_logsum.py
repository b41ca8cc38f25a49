"""The one form of every law: its plain formula, its derivatives against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.forms import Form, make_form
from analysis.laws import Array, LossSurface, PowerLaw, SaturatingPowerLaw
from analysis.logsum import Loss

POINTS = 12


def random_points(count: int = POINTS) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    return np.exp(rng.uniform(10, 16, count)), np.exp(rng.uniform(12, 18, count))


CASES: list[tuple[Any, list[float], int]] = [
    (LossSurface, [1.7, 40.0, 90.0, 0.31, 0.42], 2),
    (SaturatingPowerLaw, [1.2, 30.0, 0.2], 1),
    (PowerLaw, [5.0, -0.15], 1),
]


def made(law: Any, parameters: list[float], variables: int) -> tuple[Form, tuple[Array, ...]]:
    columns = random_points()[:variables]
    return make_form(law, columns, law.formula(parameters, *columns)), columns


@pytest.mark.parametrize(("law", "parameters", "variables"), CASES)
def test_equals_the_plain_formula(law: Any, parameters: list[float], variables: int) -> None:
    form, columns = made(law, parameters, variables)
    theta = form.encode(np.array([parameters]))
    expected = np.log(law.formula(parameters, *columns))
    np.testing.assert_allclose(form.logsum.log_values(theta)[0], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(form.decode(theta)[0], parameters, rtol=1e-10)


def test_a_coefficient_at_its_floor_is_reported_as_zero() -> None:
    form, _ = made(LossSurface, [1.7, 40.0, 90.0, 0.31, 0.42], 2)
    theta = form.encode(np.array([[0.0, 40.0, 90.0, 0.31, 0.42]]))
    assert form.decode(theta)[0, 0] == 0.0


@pytest.mark.parametrize(("law", "parameters", "variables"), CASES)
def test_jacobian_against_central_differences(
    law: Any, parameters: list[float], variables: int
) -> None:
    form, _ = made(law, parameters, variables)
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
@pytest.mark.parametrize(("law", "parameters", "variables"), CASES)
def test_gradient_and_hessian_of_the_robust_objective(
    law: Any, parameters: list[float], variables: int, delta: float
) -> None:
    form, columns = made(law, parameters, variables)
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
