"""Variable projection: at given exponents a sum of terms is linear in its coefficients.

Thousands of exponent vectors are tried, the coefficients of each solved exactly (non-negative
least squares in relative loss, then reweighted towards the robust loss), and the best start of
every region handed on to the descent. The search has two dimensions instead of five and a condition
number of order ten instead of 1e11 (Czech et al., arXiv:2603.22339).

Shapes: S starts, N points, K terms, Q exponents (the parameters that are no log coefficient).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.logsum import BLOCK_ELEMENTS, LogSum, Loss

REGIONS = 64
REWEIGHTINGS = 2
SMALLEST_SHARE = 0.03
"""A term that a start leaves out enters the descent as this share of the loss, not as nothing."""


def scatter(count: int, dimensions: int) -> Array:
    """``count`` points spread evenly over the unit cube, [count, dimensions].

    Multiples of the generalised golden ratio modulo 1 (Roberts, "The unreasonable effectiveness of
    quasirandom sequences", 2018): any count, any dimension, no random numbers.
    """
    root = 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (dimensions + 1))
    steps = root ** -np.arange(1, dimensions + 1)
    return np.asarray((0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0)


def starts(
    law: LogSum, log_loss_N: Array, weight_N: Array, loss: Loss, exponents_SQ: Array
) -> tuple[Array, Array]:
    """Parameters [S, P], coefficients solved at each exponent vector, and their objective [S]."""
    coefficients = [columns[0] for columns in law.columns]
    exponents = [p for p in range(law.num_parameters) if p not in coefficients]
    theta_SP = np.zeros((len(exponents_SQ), law.num_parameters))
    theta_SP[:, exponents] = exponents_SQ
    objective_S = np.empty(len(exponents_SQ))
    block = max(1, 4 * BLOCK_ELEMENTS // law.num_points)  # few passes: calls cost more than cache
    for first in range(0, len(exponents_SQ), block):
        part = slice(first, first + block)
        solved_SK, objective_S[part] = _solve(law, theta_SP[part], log_loss_N, weight_N, loss)
        theta_SP[part, coefficients] = solved_SK
    return theta_SP, objective_S


def best_of_regions(exponents_SQ: Array, unit_SQ: Array, objective_S: Array) -> NDArray[np.intp]:
    """The best start in each of about REGIONS equal boxes of the unit cube, best first."""
    side = max(1, round(REGIONS ** (1 / exponents_SQ.shape[1])))
    box_SQ = np.minimum((unit_SQ * side).astype(int), side - 1)
    box_S = np.ravel_multi_index(tuple(box_SQ.T), (side,) * exponents_SQ.shape[1])
    order = np.argsort(objective_S, kind="stable")
    _, first = np.unique(box_S[order], return_index=True)
    return order[np.sort(first)]


def _solve(
    law: LogSum, theta_SP: Array, log_loss_N: Array, weight_N: Array, loss: Loss
) -> tuple[Array, Array]:
    """Log coefficients [S, K] at the exponents of ``theta_SP``, and the robust objective [S]."""
    log_terms_KSN = np.stack(
        [
            theta_SP[:, list(columns)] @ term.T
            for term, columns in zip(law.terms, law.columns, strict=True)
        ]
    )
    relative_KSN = np.exp(log_terms_KSN - log_loss_N)
    ones_SN = np.ones_like(relative_KSN[0])
    reweight_SN: Array | None = None
    for last in range(REWEIGHTINGS + 1):
        weight_SN = weight_N if reweight_SN is None else weight_N * reweight_SN
        coefficient_SK = non_negative(
            relative_KSN, ones_SN, np.broadcast_to(weight_SN, ones_SN.shape)
        )
        fitted_SN = np.einsum("sk,ksn->sn", coefficient_SK, relative_KSN)
        residual_SN = -np.log(np.maximum(fitted_SN, 1e-300))
        if last < REWEIGHTINGS:
            spread_S1 = np.median(np.abs(residual_SN), axis=1, keepdims=True)
            knee_S1 = np.maximum(spread_S1, min(loss.delta, 1e3))
            reweight_SN = np.minimum(1.0, knee_S1 / np.maximum(np.abs(residual_SN), 1e-300))
    objective_S = (weight_N * loss.rho(residual_SN)).sum(axis=1)
    floor = np.log(SMALLEST_SHARE) + log_loss_N.min()
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(coefficient_SK), floor), objective_S


def non_negative(columns_KSN: Array, target_SN: Array, weight_SN: Array) -> Array:
    """Weighted non-negative least squares of a target on K columns, S problems at once: [S, K].

    Where the plain solution is negative somewhere, every choice of positive coefficients is tried
    and the best feasible one kept: exact for the five terms a law has at most.
    """
    num_terms, num_problems, _ = columns_KSN.shape
    gram_SKK = np.empty((num_problems, num_terms, num_terms))
    right_SK = np.empty((num_problems, num_terms))
    for k in range(num_terms):
        weighted_SN = columns_KSN[k] * weight_SN
        right_SK[:, k] = np.einsum("sn,sn->s", weighted_SN, target_SN)
        for other in range(k, num_terms):
            product_S = np.einsum("sn,sn->s", weighted_SN, columns_KSN[other])
            gram_SKK[:, k, other] = gram_SKK[:, other, k] = product_S
    solved_SK = _solve_all(gram_SKK, right_SK)
    bad_S = np.flatnonzero(~(solved_SK >= 0).all(axis=1))
    if len(bad_S):
        solved_SK[bad_S] = _best_feasible(gram_SKK[bad_S], right_SK[bad_S])
    return solved_SK


def _best_feasible(gram_SKK: Array, right_SK: Array) -> Array:
    num_problems, num_terms = right_SK.shape
    best_S, best_SK = np.zeros(num_problems), np.zeros((num_problems, num_terms))
    for count in range(1, num_terms):
        for chosen in combinations(range(num_terms), count):
            pick = np.array(chosen)
            solved_SK = _solve_all(gram_SKK[:, pick[:, None], pick], right_SK[:, pick])
            # The explained sum of squares is right side · solution; the more the better.
            explained_S = (solved_SK * right_SK[:, pick]).sum(axis=1)
            better_S = (solved_SK >= 0).all(axis=1) & (explained_S > best_S)
            best_S = np.where(better_S, explained_S, best_S)
            filled_SK = np.zeros((num_problems, num_terms))
            filled_SK[:, pick] = solved_SK
            best_SK = np.where(better_S[:, None], filled_SK, best_SK)
    return best_SK


def _solve_all(gram_SKK: Array, right_SK: Array) -> Array:
    """Normal equations, columns scaled to length one and a hair of ridge against exact ties."""
    length_SK = np.sqrt(np.einsum("skk->sk", gram_SKK)) + 1e-300
    scaled_SKK = gram_SKK / length_SK[:, :, None] / length_SK[:, None, :]
    scaled_SKK += 1e-13 * np.eye(right_SK.shape[1])
    solved_SK = np.linalg.solve(scaled_SKK, (right_SK / length_SK)[..., None])[..., 0]
    return np.asarray(solved_SK / length_SK)
