"""The best optimum of one robust problem: all starts, the descent, the loss and its scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.catalogue import Law, the_law
from analysis.descent import MAX_STEPS, Minima, minimise
from analysis.forms import Form, make_form
from analysis.laws import Array
from analysis.logsum import LogSum, Loss
from analysis.projection import best_of_regions, starts
from analysis.results import FitError
from analysis.robust import REFERENCE_DELTA, chosen_loss, efficient_loss
from analysis.settings import FitSettings

SAME_OPTIMUM = 1e-5
"""Optima whose objectives differ by less than this share count as one."""
MOST_SEARCHED = 4_000
"""Points on which the starts and regions are searched."""
PLAIN_ROUNDS = 50
PLAIN_TOLERANCE = 1e-10
ROUGH_STEPS = 15
"""Enough for the residuals' spread."""
FIRST_STEPS = 40
HOPELESS = 1.5
"""Times the best objective: a start still above it after the first steps is given up."""
ROUNDING = {"huber": 1e-20, "squares": 1e-20, "lad": 1e-9}
"""Of the objective per point: a perfect fit's optima differ by this and are still one."""
MOST_RIVALS = 8
RIVAL_STEPS = 60
EQUAL_OPTIMUM = 1e-9
"""Of optima that differ by less, the one that took the fewest steps is reported."""


@dataclass(frozen=True)
class Solved:
    """The best optimum of one robust problem, and what the search saw."""

    form: Form
    theta_P: Array
    start_P: Array
    loss: Loss
    delta_rule: str
    value: float
    starts: int
    optima: tuple[float, ...]
    """Objectives of the distinct optima, best first."""
    converged: bool
    steps: int
    residual_N: Array
    """log measured - log law."""
    weight_N: Array
    """Of the squared log-residuals; all one unless plain residuals were asked for."""


def solve(
    law: type[Law], variables: Sequence[Array], values: Array, settings: FitSettings
) -> Solved:
    """The best optimum over all starts."""
    form = make_form(law, variables, values, settings.held)
    log_N, ones_N = np.log(values), np.ones(len(values))
    exponents, unit = form.exponent_starts(settings.starts)
    loss, rule = chosen_loss(settings, len(values), form.logsum.num_parameters)
    # Regions are searched on a part of very many points; the best go on with all of them.
    part = _part(len(values))
    few, log_M = form.logsum.take(part), log_N[part]
    theta_SP, objective_S = starts(few, log_M, ones_N[part], loss, exponents)
    picked = best_of_regions(exponents, unit, objective_S)
    begin_BP = theta_SP[picked]
    if rule is None:
        rough = minimise(few, begin_BP, log_M, ones_N[part], loss, max_steps=ROUGH_STEPS)
        best_P = rough.theta_BP[rough.objective_B.argmin()]
        residual_N = log_N - form.logsum.log_values(best_P[None])[0]
        loss, rule = efficient_loss(residual_N, form.logsum.num_parameters)
        begin_BP = rough.theta_BP
    if loss.kind == "lad":  # its limit of small deltas is slow: only from where Huber's loss ended
        found = _descend(few, begin_BP, log_M, Loss(kind="huber", delta=REFERENCE_DELTA))
    else:
        found = _descend(few, begin_BP, log_M, loss)
    if loss.kind == "lad" or len(part) < len(values):
        rows = np.argsort(found.objective_B)[:MOST_RIVALS]
        found = minimise(form.logsum, found.theta_BP[rows], log_N, ones_N, loss)
        picked = picked[rows]
    lowest = found.objective_B.min()
    equal_B = found.objective_B <= lowest * (1 + EQUAL_OPTIMUM) + 1e-20
    best = int(np.argmin(np.where(equal_B, found.steps_B, np.iinfo(np.intp).max)))
    theta_P = found.theta_BP[best]
    value, weight_N = float(found.objective_B[best]), ones_N
    if settings.residual == "plain":
        theta_P, weight_N, value = _plain(form.logsum, theta_P, values)
    if not np.isfinite(found.objective_B[best]):
        raise FitError(f"{the_law(law)}: no start reached a finite objective")
    return Solved(
        form=form,
        theta_P=theta_P,
        start_P=theta_SP[picked][best],
        loss=loss,
        delta_rule=rule,
        value=value,
        starts=len(exponents),
        optima=_distinct(found.objective_B[found.converged_B], ROUNDING[loss.kind] * len(log_N)),
        converged=bool(found.converged_B[best]),
        steps=int(found.steps_B[best]),
        residual_N=log_N - form.logsum.log_values(theta_P[None])[0],
        weight_N=weight_N,
    )


def _plain(law: LogSum, theta_P: Array, values_N: Array) -> tuple[Array, Array, float]:
    """Carry an optimum over to half the sum of (measured - law)²: theta, weights, objective.

    With weights law·(measured - law)/log(measured/law) the weighted log-residuals have the plain
    objective's gradient, so where the weights no longer change, that objective is at its minimum.
    """
    log_N, weight_N, theta_BP = np.log(values_N), np.ones(len(values_N)), theta_P[None]
    squares = Loss(kind="squares", delta=np.inf)
    for _ in range(PLAIN_ROUNDS):
        law_N = np.exp(law.log_values(theta_BP)[0])
        log_ratio_N = np.log(values_N / law_N)
        safe_N = np.where(log_ratio_N == 0, 1.0, log_ratio_N)
        weight_N = law_N**2 * np.where(log_ratio_N == 0, 1.0, np.expm1(safe_N) / safe_N)
        before, theta_BP = theta_BP, minimise(law, theta_BP, log_N, weight_N, squares).theta_BP
        if np.abs(theta_BP - before).max() < PLAIN_TOLERANCE:
            break
    residual_N = values_N - np.exp(law.log_values(theta_BP)[0])
    return theta_BP[0], weight_N, float((residual_N**2).sum() / 2)


def _part(num_points: int) -> NDArray[np.intp]:
    """All points, or MOST_SEARCHED of them drawn without order."""
    if num_points <= MOST_SEARCHED:
        return np.arange(num_points)
    return np.sort(np.random.default_rng(0).permutation(num_points)[:MOST_SEARCHED])


def _descend(law: LogSum, start_BP: Array, log_N: Array, loss: Loss) -> Minima:
    """Some steps from every start, then the best and its rivals to the end.

    Starts far from any optimum may crawl along a ridge for hundreds of steps; the ones that are far
    above the best after the first steps are left there, not converged.
    """
    found = minimise(law, start_BP, log_N, np.ones(len(log_N)), loss, max_steps=FIRST_STEPS)
    rivals = ~found.converged_B & (found.objective_B < HOPELESS * found.objective_B.min())
    rows = np.flatnonzero(rivals)[np.argsort(found.objective_B[rivals])][:MOST_RIVALS]
    _continue(found, rows, law, log_N, loss, RIVAL_STEPS)
    best = int(np.argmin(found.objective_B))
    if not found.converged_B[best]:
        _continue(found, np.array([best]), law, log_N, loss, MAX_STEPS)
    return found


def _continue(
    found: Minima, rows: NDArray[np.intp], law: LogSum, log_N: Array, loss: Loss, most: int
) -> None:
    """Further steps for some of the problems, in place."""
    if len(rows) == 0:
        return
    ones_N = np.ones(len(log_N))
    end = minimise(law, found.theta_BP[rows], log_N, ones_N, loss, max_steps=most)
    found.theta_BP[rows], found.objective_B[rows] = end.theta_BP, end.objective_B
    found.converged_B[rows] = end.converged_B
    found.steps_B[rows] += end.steps_B


def make_law(solved: Solved, constants: dict[str, float] | None = None) -> Law:
    """The law at the optimum."""
    parameters = solved.form.decode(solved.theta_P[None])[0]
    named = dict(zip(solved.form.parameters, map(float, parameters), strict=True))
    fields: dict[str, Any] = {**named, **(constants or {})}
    return solved.form.law(**fields)


def _distinct(objectives: Array, rounding: float) -> tuple[float, ...]:
    distinct: list[float] = []
    for value in np.sort(objectives):
        if not distinct or value > distinct[-1] * (1 + SAME_OPTIMUM) + rounding:
            distinct.append(float(value))
    return tuple(distinct)
