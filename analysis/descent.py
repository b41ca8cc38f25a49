"""Many small robust fits at once: damped Newton steps on a whole batch of problems.

Every problem has the same law and points but its own start, its own losses or its own weights:
the starts of one fit, or all replicates of a bootstrap. A step is kept only if the objective falls,
otherwise the damping rises (Levenberg 1944, Marquardt 1963). The first steps, and each after a
failed one, are iteratively reweighted Gauss-Newton with the coefficients solved anew (safe far from
an optimum and along curved valleys); the others use the exact Hessian (under a near-absolute loss
reweighting alone crawls).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.logsum import BLOCK_ELEMENTS, LogSum, Loss
from analysis.projection import non_negative

REWEIGHTED_STEPS = 6
TOLERANCE = 1e-11
"""A kept step that lowers the objective by less than this share of it ends a problem."""
IDLE_STEPS = 10
"""Ten steps in a row without that, each eight times shorter than the last, end it too."""
MAX_STEPS = 200
LAD_DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Absolute values are the limit of Huber's loss; each delta starts where the one before ended."""
LAD_STEPS = 60


class Minima(NamedTuple):
    """Where each problem ended."""

    theta_BP: Array
    objective_B: Array
    converged_B: NDArray[np.bool_]
    steps_B: NDArray[np.intp]


def minimise(
    law: LogSum,
    start_BP: Array,
    log_loss_BN: Array,
    weight_BN: Array,
    loss: Loss,
    *,
    max_steps: int = MAX_STEPS,
) -> Minima:
    """Lower sum_n weight · rho(log_loss - log f) from each start.

    Args:
        law: the law at the N points.
        start_BP: one start a problem.
        log_loss_BN: measured log losses, [N] or one row a problem.
        weight_BN: weights (bootstrap counts), [N] or one row a problem.
        loss: Huber, absolute or squares.
        max_steps: bound on the steps of each problem.
    """
    size = len(start_BP)
    log_loss_BN = np.broadcast_to(log_loss_BN, (size, law.num_points))
    weight_BN = np.broadcast_to(weight_BN, (size, law.num_points))
    if loss.kind == "lad":
        return _absolute(law, start_BP, log_loss_BN, weight_BN, max_steps)
    theta_BP = np.empty_like(start_BP, dtype=float)
    objective_B = np.empty(size)
    converged_B = np.empty(size, dtype=bool)
    steps_B = np.empty(size, dtype=np.intp)
    block = max(1, BLOCK_ELEMENTS // law.num_points)
    for first in range(0, size, block):
        part = slice(first, first + block)
        found = _block(law, start_BP[part], log_loss_BN[part], weight_BN[part], loss, max_steps)
        theta_BP[part], objective_B[part], converged_B[part], steps_B[part] = found
    return Minima(theta_BP, objective_B, converged_B, steps_B)


def _absolute(
    law: LogSum, start_BP: Array, log_loss_BN: Array, weight_BN: Array, max_steps: int
) -> Minima:
    theta_BP = start_BP
    for delta in LAD_DELTAS:
        found = minimise(
            law,
            theta_BP,
            log_loss_BN,
            weight_BN,
            Loss(kind="huber", delta=delta),
            max_steps=min(max_steps, LAD_STEPS),
        )
        theta_BP = found.theta_BP
    residual_BN = log_loss_BN - law.log_values(theta_BP)
    objective_B = (weight_BN * np.abs(residual_BN)).sum(axis=1)
    return Minima(theta_BP, objective_B, found.converged_B, found.steps_B)


def _block(
    law: LogSum,
    start_BP: Array,
    log_loss_BN: Array,
    weight_BN: Array,
    loss: Loss,
    max_steps: int,
) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.intp]]:
    """One cache-sized block of problems, each until it converges."""
    diagonal = np.arange(law.num_parameters)
    theta_BP = np.clip(start_BP, law.lower_P, law.upper_P)
    log_BN, shares = law.shares(theta_BP)
    residual_BN = log_loss_BN - log_BN
    objective_B = (weight_BN * loss.rho(residual_BN)).sum(axis=1)
    damping_B = np.full(len(theta_BP), 1e-3)
    scale_BP: Array = np.ones_like(theta_BP)
    exact_B = np.zeros(len(theta_BP), dtype=bool)
    idle_B = np.zeros(len(theta_BP), dtype=np.intp)

    end_theta, end_objective = theta_BP.copy(), objective_B.copy()
    end_converged = np.zeros(len(theta_BP), dtype=bool)
    end_steps = np.zeros(len(theta_BP), dtype=np.intp)
    active = np.arange(len(theta_BP))
    open_B = np.ones(len(theta_BP), dtype=bool)
    coefficients = [columns[0] for columns in law.columns]

    for step_index in range(max_steps):
        slope_BN = weight_BN * loss.slope(residual_BN)
        gradient_BP = law.gradient(shares, slope_BN)
        size_BN = np.maximum(abs(residual_BN), 1e-30)
        reweighted_BN = weight_BN * np.minimum(1.0, loss.delta / size_BN)
        if exact_B.any():
            inner_BN = np.where(size_BN <= loss.delta, weight_BN, 0.0)
            outer_BN = np.where(exact_B[:, None], inner_BN, reweighted_BN)
            hessian_BPP = law.curvature(shares, outer_BN, slope_BN * exact_B[:, None])
        else:
            hessian_BPP = law.curvature(shares, reweighted_BN, None)
            scale_BP = hessian_BPP[:, diagonal, diagonal] + 1e-12 * weight_BN.sum(1)[:, None]
        hessian_BPP[:, diagonal, diagonal] += damping_B[:, None] * scale_BP
        held_BP = ((theta_BP <= law.lower_P) & (gradient_BP < 0)) | (
            (theta_BP >= law.upper_P) & (gradient_BP > 0)
        )
        _hold(hessian_BPP, gradient_BP, held_BP)
        move_BP = _solve(hessian_BPP, gradient_BP, scale_BP)
        tried_BP = np.clip(_moved(theta_BP, move_BP, coefficients), law.lower_P, law.upper_P)

        log_BN, tried_shares = law.shares(tried_BP)
        tried_residual_BN = log_loss_BN - log_BN
        tried_B = (weight_BN * loss.rho(tried_residual_BN)).sum(axis=1)
        rows = np.flatnonzero(~exact_B) if len(law.terms) > 1 else active[:0]
        if len(rows):
            _project(law, loss, weight_BN, tried_BP, tried_residual_BN, tried_shares, tried_B, rows)
        kept_B = tried_B <= objective_B
        gain_B = np.where(kept_B, objective_B - tried_B, np.inf)
        moved_B = kept_B & (gain_B > TOLERANCE * objective_B)
        idle_B = np.where(moved_B, 0, idle_B + 1)
        flat_B = (kept_B & ~moved_B & (damping_B <= 1.0)) | (idle_B >= IDLE_STEPS)
        damping_B = np.clip(np.where(kept_B, damping_B * 0.1, damping_B * 8.0), 1e-14, 1e12)

        exact_B = kept_B & (step_index + 1 >= REWEIGHTED_STEPS)
        kept_B1 = kept_B[:, None]
        theta_BP = np.where(kept_B1, tried_BP, theta_BP)
        objective_B = np.where(kept_B, tried_B, objective_B)
        residual_BN = np.where(kept_B1, tried_residual_BN, residual_BN)
        for share_BN, tried_share_BN in zip(shares, tried_shares, strict=True):
            np.copyto(share_BN, tried_share_BN, where=kept_B1)

        ended_B = open_B & flat_B & (step_index >= REWEIGHTED_STEPS)
        end_theta[active[open_B]] = theta_BP[open_B]
        end_objective[active[open_B]] = objective_B[open_B]
        end_steps[active[open_B]] += 1
        end_converged[active[ended_B]] = True
        open_B = open_B & ~ended_B
        if not open_B.any():
            break
        if open_B.mean() < 0.7:  # copying the rest together costs less than carrying the ended on
            active, theta_BP, objective_B = active[open_B], theta_BP[open_B], objective_B[open_B]
            residual_BN, shares = residual_BN[open_B], [share_BN[open_B] for share_BN in shares]
            damping_B, scale_BP, exact_B = damping_B[open_B], scale_BP[open_B], exact_B[open_B]
            idle_B = idle_B[open_B]
            log_loss_BN, weight_BN = log_loss_BN[open_B], weight_BN[open_B]
            open_B = np.ones(len(active), dtype=bool)
    return end_theta, end_objective, end_converged, end_steps


def _solve(hessian_BPP: Array, gradient_BP: Array, scale_BP: Array) -> Array:
    """The steps; a block that holds an exactly singular problem is damped a little more."""
    try:
        return np.asarray(np.linalg.solve(hessian_BPP, gradient_BP[..., None])[..., 0])
    except np.linalg.LinAlgError:
        diagonal = np.arange(hessian_BPP.shape[1])
        hessian_BPP[:, diagonal, diagonal] += 1e-6 * scale_BP + 1e-12
        return np.asarray((np.linalg.pinv(hessian_BPP) @ gradient_BP[..., None])[..., 0])


def _moved(theta_BP: Array, move_BP: Array, coefficients: list[int]) -> Array:
    """The step taken in the coefficients themselves where they fall, not in their logs.

    So a coefficient reaches zero in one step instead of by ever smaller shares; a step that would
    take one below zero is shortened to end there.
    """
    falls_BK = np.minimum(move_BP[:, coefficients], -1e-300)
    move_BP = np.asarray(move_BP * np.minimum(1.0, (-1 / falls_BK).min(axis=1))[:, None])
    change_BK = move_BP[:, coefficients]
    move_BP[:, coefficients] = np.where(
        change_BK < 0, np.log1p(np.maximum(change_BK, -1 + 1e-12)), change_BK
    )
    return theta_BP + move_BP


def _project(
    law: LogSum,
    loss: Loss,
    weight_BN: Array,
    theta_BP: Array,
    residual_BN: Array,
    shares: list[Array],
    objective_B: Array,
    rows: NDArray[np.intp],
) -> None:
    """Solve the coefficients of some problems anew at the exponents just tried, in place.

    Multiplying coefficient k by m_k changes log f by log(sum m_k·share_k), so to first order the
    residual is r + 1 - sum m_k·share_k: non-negative least squares on the shares, nothing more.
    This is the variable projection that lets a step follow a curved valley, and reach a coefficient
    of zero at once. It is kept where the objective falls.
    """
    weight_BN, before_BN = weight_BN[rows], residual_BN[rows]
    share_KBN = np.stack([share_BN[rows] for share_BN in shares])
    size_BN = np.maximum(abs(before_BN), 1e-30)
    reweighted_BN = weight_BN * np.minimum(1.0, loss.delta / size_BN)
    factor_BK = non_negative(share_KBN, 1.0 + before_BN, reweighted_BN)
    coefficients = [columns[0] for columns in law.columns]
    old_BP = theta_BP[rows]
    new_BP = old_BP.copy()
    with np.errstate(divide="ignore"):
        new_BP[:, coefficients] += np.log(factor_BK)
    new_BP = np.clip(new_BP, law.lower_P, law.upper_P)
    factor_KB = np.exp((new_BP - old_BP)[:, coefficients]).T
    share_KBN *= factor_KB[:, :, None]
    total_BN = share_KBN.sum(axis=0)
    after_BN = before_BN - np.log(total_BN)
    after_B = (weight_BN * loss.rho(after_BN)).sum(axis=1)
    better_B = after_B < objective_B[rows]
    better = rows[better_B]
    theta_BP[better], residual_BN[better] = new_BP[better_B], after_BN[better_B]
    objective_B[better] = after_B[better_B]
    for share_BN, new_BN in zip(shares, share_KBN, strict=True):
        share_BN[better] = new_BN[better_B] / total_BN[better_B]


def _hold(hessian_BPP: Array, gradient_BP: Array, held_BP: NDArray[np.bool_]) -> None:
    """Take parameters that press against a bound out of the step, in place."""
    problem, parameter = np.nonzero(held_BP)
    if len(problem):
        gradient_BP[problem, parameter] = 0.0
        hessian_BPP[problem, parameter, :] = 0.0
        hessian_BPP[problem, :, parameter] = 0.0
        hessian_BPP[problem, parameter, parameter] = 1.0
