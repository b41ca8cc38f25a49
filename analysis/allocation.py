"""A compute budget at the surface's optimum, with what the replicates say about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.catalogue import the_law
from analysis.laws import Array, LossSurface
from analysis.results import Fit, Interval, Prediction, stretched
from model.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Size, tokens and loss of least loss at a compute."""

    flops: float
    size: Interval
    tokens: Interval
    loss: Prediction
    open_frac: float
    """Share of the replicates without an optimum: one of the two terms is nothing there."""


def optimum(fit: Fit, flops: float, level: float = 0.9) -> Optimum:
    """What the surface recommends for ``flops``.

    Raises:
        ConfigError: the fit is no surface, or has no optimum because one of its terms is nothing.
    """
    law = fit.law
    if not isinstance(law, LossSurface):
        raise ConfigError(f"an optimum needs the hoffmann law, this fit is of {the_law(type(law))}")
    if not (law.has_optimum and flops > 0):
        raise ConfigError(
            f"no optimum at {flops:g} FLOPs: the fit found A = {law.A:g} and B = {law.B:g}"
        )
    best = law.optimum(flops)
    log_ratio = np.log(flops / law.flops_per_size_token)
    log_size_R, exponent_R = log_optimal_size(np.asarray(fit.replicates))
    kept = np.isfinite(log_size_R)
    size_R = log_size_R[kept] + exponent_R[kept] * log_ratio
    return Optimum(
        flops=flops,
        size=_log_interval(best.size, size_R, fit.noise_df, level),
        tokens=_log_interval(best.tokens, log_ratio - size_R, fit.noise_df, level),
        loss=fit.predict(best.size, best.tokens, level=level),
        open_frac=float(1 - kept.mean()),
    )


def exponents(fit: Fit, level: float = 0.9) -> tuple[Interval, Interval]:
    """The exponents of N*(C) and D*(C), with their intervals."""
    law = fit.law
    if not isinstance(law, LossSurface):
        raise ConfigError(f"an optimum needs the hoffmann law, this fit is of {the_law(type(law))}")
    _, exponent_R = log_optimal_size(np.asarray(fit.replicates))
    value = law.optimal_size().b
    tail = (1 - level) / 2
    deviation = np.quantile(exponent_R - value, [tail, 1 - tail])
    low, high = map(float, value + stretched(deviation, fit.noise_df, level))
    low, high = max(low, 0.0), min(high, 1.0)  # neither falls as compute grows
    size = Interval(value=value, low=min(low, value), high=max(high, value), level=level)
    tokens = Interval(value=1 - value, low=1 - size.high, high=1 - size.low, level=level)
    return size, tokens


def log_optimal_size(surfaces_RP: Array) -> tuple[Array, Array]:
    """log G and the exponent of N* = G·(C/k)^exponent for surfaces (E, A, B, alpha, beta).

    log G is not finite where A or B is zero.
    """
    _, A, B, alpha, beta = surfaces_RP.T
    total = alpha + beta
    with np.errstate(divide="ignore", invalid="ignore"):
        log_balance = (np.log(alpha * A) - np.log(beta * B)) / total
    return log_balance, beta / total


def _log_interval(value: float, logs_R: Array, df: float, level: float) -> Interval:
    tail = (1 - level) / 2
    deviation = np.quantile(logs_R - np.log(value), [tail, 1 - tail])
    low, high = map(float, stretched(deviation, df, level))
    return Interval(
        value=value,
        low=float(value * np.exp(min(low, 0.0))),
        high=float(value * np.exp(max(high, 0.0))),
        level=level,
    )
