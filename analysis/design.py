"""The next best run: the one that narrows the forecast at the target most for each FLOP.

V-optimal design (Fedorov 1972), greedy: near the fit the law is linear in its parameters, so a
run's effect on the variance of the log-loss at the target is known before it is made. Every
replicate of the bootstrap gives its own linearisation and the effects are averaged over them, so a
design does not trust one estimate of a curved law. A cell may be run again with another seed: a
cheap run that says much may be worth more a second time than a dear one once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from analysis.catalogue import the_law
from analysis.downstream import DownstreamLaw
from analysis.forms import make_form
from analysis.laws import Array
from analysis.results import Fit, stretched
from analysis.routed import RoutedLaw
from model.config import require
from model.errors import ConfigError

LINEARISATIONS = 24
"""Replicates whose linearisations are averaged."""
NEAR_FLOOR = 1.05
"""A half width within this factor of the floor has nothing more to gain."""
PRIOR_SD = {"coefficient": 3.0, "exponent": 0.5}
"""What is known of a parameter before any run, so that a design can begin with few of them."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that could be made."""

    label: str
    x: tuple[float, ...]
    """The law's variables, in its order."""
    cost: float
    """Training FLOPs, or any other currency."""
    most: int = 1
    """How often it may be made, with different seeds."""


@dataclass(frozen=True, kw_only=True)
class NextRun:
    """One step of a design."""

    label: str
    cost: float
    spent: float
    """With the steps before it."""
    half_width: float
    """Of the forecast's interval at the target after it, as a share of the loss."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """Runs to make next, in order."""

    runs: tuple[NextRun, ...]
    before: float
    """Half width at the target with what is there already, as a share of the loss."""
    floor: float
    """The part of it that no run removes: the noise of the measured run itself."""
    stop: str
    """Why it ends where it does."""


def next_runs(
    fit: Fit,
    seen: Sequence[Array],
    candidates: Sequence[Candidate],
    target: Sequence[float],
    budget: float,
    *,
    tolerance: float = 0.0,
    seeds_sd: float = 0.0,
    level: float = 0.9,
) -> Design:
    """Spend ``budget`` on the candidates that narrow the forecast at ``target`` most per cost.

    Args:
        fit: the law so far.
        seen: the law's variables at the runs it was fitted to, [N] each.
        candidates: the pool.
        target: the law's variables at the run to be forecast.
        budget: the most that may be spent, in the candidates' currency.
        tolerance: stop when the half width is below this share of the loss. Where that lies below
            the floor no run can reach it, and it stops when little more than the floor is left.
        seeds_sd: the measured noise floor, in log-loss. A law of few points passes closer by them
            than a new run will; the larger of this and the fit's own spread counts.
        level: of the interval.

    Raises:
        ConfigError: no budget, no candidate.
    """
    require(budget > 0, f"a design's budget must be positive, got {budget}")
    require(len(candidates) > 0, "a design needs candidates")
    fit = replace(fit, noise_sd=max(fit.noise_sd, seeds_sd))
    gradient_RCP, information_RPP, target_RP = _linearise(fit, seen, candidates, target)
    cost_C = np.array([candidate.cost for candidate in candidates])
    left_C = np.array([candidate.most for candidate in candidates])
    noise = fit.noise_sd**2
    covariance_RPP = np.linalg.inv(information_RPP)

    def half_width() -> float:
        variance_R = np.einsum("rp,rpq,rq->r", target_RP, covariance_RPP, target_RP)
        return _half_width(fit, float(np.median(variance_R)) + noise, level)

    floor = _half_width(fit, noise, level)
    unreachable = 0 < tolerance < floor
    before, spent, runs = half_width(), 0.0, []
    width = before
    while True:
        open_C = (left_C > 0) & (spent + cost_C <= budget)
        if width <= tolerance:
            stop = f"half width {width:.2%} is within the tolerance of {tolerance:.2%}"
            break
        if unreachable and width <= NEAR_FLOOR * floor:
            stop = (
                f"half width {width:.2%} is all but the {floor:.2%} that one run's own noise "
                f"leaves; no run reaches the tolerance of {tolerance:.2%}"
            )
            break
        if not open_C.any():
            stop = "the budget is spent" if (left_C > 0).any() else "no candidate is left"
            break
        pull_RP = np.einsum("rpq,rq->rp", covariance_RPP, target_RP)
        effect_RC = np.einsum("rcp,rp->rc", gradient_RCP, pull_RP) ** 2
        own_RC = np.einsum("rcp,rpq,rcq->rc", gradient_RCP, covariance_RPP, gradient_RCP)
        variance_R = np.einsum("rp,rp->r", target_RP, pull_RP)
        # Share of the target's variance that a run takes away, so no replicate outweighs others.
        gain_C = (effect_RC / (own_RC + noise) / variance_R[:, None]).mean(axis=0)
        chosen = int(np.argmax(np.where(open_C, gain_C / cost_C, -1.0)))
        row_RP = gradient_RCP[:, chosen]
        moved_RP = np.einsum("rpq,rq->rp", covariance_RPP, row_RP)
        shrink_R = noise + np.einsum("rp,rp->r", row_RP, moved_RP)
        covariance_RPP = covariance_RPP - (
            moved_RP[:, :, None] * moved_RP[:, None, :] / shrink_R[:, None, None]
        )
        left_C[chosen] -= 1
        spent += float(cost_C[chosen])
        width = half_width()
        picked = candidates[chosen]
        runs.append(NextRun(label=picked.label, cost=picked.cost, spent=spent, half_width=width))
    return Design(runs=tuple(runs), before=before, floor=floor, stop=stop)


def _linearise(
    fit: Fit, seen: Sequence[Array], candidates: Sequence[Candidate], target: Sequence[float]
) -> tuple[Array, Array, Array]:
    """Gradients of log-loss at the candidates [R, C, P], information of the runs seen [R, P, P],
    and gradients at the target [R, P]; R linearisations."""
    columns = [
        np.concatenate([np.asarray(column, dtype=float), [c.x[i] for c in candidates], [target[i]]])
        for i, column in enumerate(seen)
    ]
    law = type(fit.law)
    if issubclass(law, RoutedLaw | DownstreamLaw):
        raise ConfigError(f"a design needs a law that is a sum of terms, and {the_law(law)} is not")
    values = np.asarray(fit.law.formula(fit.law.parameters, *columns))
    form = make_form(law, columns, values)
    replicates = np.asarray(fit.replicates)
    rows = np.linspace(0, len(replicates) - 1, LINEARISATIONS).astype(int)
    theta_RP = form.encode(np.vstack([fit.law.parameters, replicates[rows]]))
    theta_RP = np.clip(theta_RP, form.logsum.lower_P, form.logsum.upper_P)
    jacobian_RNP = np.stack([form.logsum.jacobian(theta_P) for theta_P in theta_RP])
    num_seen = len(seen[0])
    at_seen = jacobian_RNP[:, :num_seen]
    information_RPP = at_seen.transpose(0, 2, 1) @ at_seen / fit.noise_sd**2
    prior_P = [
        1 / PRIOR_SD["exponent" if name in law.EXPONENTS else "coefficient"] ** 2
        for name in form.parameters
    ]
    information_RPP = information_RPP + np.diag(prior_P)
    return jacobian_RNP[:, num_seen:-1], information_RPP, jacobian_RNP[:, -1]


def _half_width(fit: Fit, variance: float, level: float) -> float:
    quantile = float(ndtri((1 + level) / 2))
    return float(stretched(quantile * variance**0.5, fit.noise_df, level))
