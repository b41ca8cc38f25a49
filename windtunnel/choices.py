"""From an aim to a size: what the fitted surface recommends, how well it knows, what is used.

Symbols as in analysis: C training FLOPs, M training FLOPs per token, D tokens; C = M·D. At the
optimum of L = E + A/M^alpha + B/D^beta under fixed C the two terms' slopes agree:
alpha·A·M^-alpha = beta·B·D^-beta. That one equation gives M from C, M from D, or D from M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.laws import Array, LossSurface
from analysis.points import Points
from analysis.results import Fit, FitStatus, Interval
from model.config import require
from model.errors import ConfigError
from windtunnel.targets import Aim

LOG_MOST = math.log(1e40)


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """Where a size may lie when the fit does not know the optimum.

    The promoted run is `growth` times the largest run's compute; the size takes a share of that
    growth as its exponent: M = M_largest · growth^share, and the tokens take the rest.
    """

    open_ratio: float
    """The optimum is poorly known when its interval's ends are further apart than this factor, or
    when the fit says that it lies at the edge of what was tried."""
    least_share: float
    most_share: float

    def __post_init__(self) -> None:
        require(self.open_ratio > 1, f"open_ratio must be above 1, got {self.open_ratio:g}")
        require(
            0 < self.least_share <= self.most_share < 1,
            f"least_share ({self.least_share:g}) and most_share ({self.most_share:g}) must lie "
            "between 0 and 1, in this order",
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One number of the promoted configuration, and where it comes from."""

    name: str
    law: str
    """The rule in words and numbers."""
    wanted: float
    """What the rule gives."""
    low: float | None = None
    """Ends of the rule's interval; absent where nobody measured one, and the note says so."""
    high: float | None = None
    level: float = 0.9
    used: float
    """What the run takes: whole batches, widths that exist."""
    cost_nats: float | None = None
    """Predicted loss of the configuration used minus that at the rule's own value."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """The surface's recommendation for an aim, before it is snapped to a shape that exists."""

    law: str
    size: Interval
    """M of least loss; the aim's own value where the aim fixes it."""
    tokens: Interval
    """D of least loss; the aim's own value where the aim fixes it."""
    flops_per_token: float
    """M to build: the optimum's, or one held to the declared range."""
    train_flops: float
    note: str
    """Why not the optimum; empty when it is used."""


def allocate(fit: Fit, points: Points, aim: Aim, size_range: SizeRange, level: float) -> Allocated:
    """Spend ``aim`` at the fitted surface's optimum, or within the declared range.

    Raises:
        ConfigError: the fit's size variable is not flops_per_token.
    """
    law = fit.law
    if not isinstance(law, LossSurface) or points.size_variable != "flops_per_token":
        raise ConfigError(
            f"the fit's size is {points.size_variable}, a promotion needs flops_per_token: "
            "run `windtunnel fit` with its default size"
        )
    free = _optimum(fit, aim, level)
    low, high = _declared_range(points, aim, size_range)
    doubts = _doubts(fit, free, size_range)
    used = min(max(free.value, low), high) if doubts else free.value
    note = ""
    if doubts:
        outcome = (
            "inside it, and used" if used == free.value else "outside; the nearest end is used"
        )
        note = (
            f"the optimum is poorly known ({'; '.join(doubts)}), so the choice is held to "
            f"{low:.3g}..{high:.3g}, the declared range beyond the largest run; the optimum lies "
            f"{outcome}"
        )
    if aim.flops_per_token is not None:
        fixed = _exactly(aim.flops_per_token, level)
        return Allocated(
            law=f"D*(M) of {_formula(law)}",
            size=fixed,
            tokens=free,
            flops_per_token=fixed.value,
            train_flops=fixed.value * used,
            note=note,
        )
    if aim.tokens is not None:
        return Allocated(
            law=f"M*(D) of {_formula(law)}",
            size=free,
            tokens=_exactly(aim.tokens, level),
            flops_per_token=used,
            train_flops=used * aim.tokens,
            note=note,
        )
    flops = float(_given(aim.train_flops))
    return Allocated(
        law=f"M*(C) of {_formula(law)}",
        size=free,
        tokens=Interval(
            value=flops / free.value, low=flops / free.high, high=flops / free.low, level=level
        ),
        flops_per_token=used,
        train_flops=flops,
        note=note,
    )


def _doubts(fit: Fit, optimum: Interval, size_range: SizeRange) -> list[str]:
    """Why the optimum can't be trusted as it stands; empty when it can."""
    doubts = []
    if optimum.high / optimum.low > size_range.open_ratio:
        doubts.append(f"its interval spans a factor of {optimum.high / optimum.low:.3g}")
    if FitStatus.EDGE_OPTIMUM in fit.statuses():
        doubts.append("already inside the sweep it lies at the edge of the sizes tried")
    return doubts


def _optimum(fit: Fit, aim: Aim, level: float) -> Interval:
    """The free quantity's optimum with its bootstrap interval: D where M is fixed, else M."""
    tails = ((1 - level) / 2, (1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(_log_optimum(fit.law.parameters, aim))
        drawn = _log_optimum(np.asarray(fit.replicates, dtype=float), aim)
    # A replicate without one of the two terms has its optimum at nothing or at infinity; one
    # without both has none, and could lie anywhere. Neither D nor M is below 1 or above 1e40.
    if np.isnan(drawn).any() or not drawn.size:
        low, high = 0.0, LOG_MOST
    else:
        low, high = np.quantile(np.clip(drawn, 0.0, LOG_MOST), tails)
    value = min(max(value, 0.0), LOG_MOST) if not math.isnan(value) else (low + high) / 2
    return Interval(
        value=math.exp(value),
        low=math.exp(min(low, value)),
        high=math.exp(max(high, value)),
        level=level,
    )


def _log_optimum(parameters: Array, aim: Aim) -> Array:
    """Log of the free quantity at the optimum, for parameter rows [..., 5] (E, A, B, a, b)."""
    _, A, B, alpha, beta = np.moveaxis(parameters, -1, 0)
    balance = np.log(alpha * A) - np.log(beta * B)
    if aim.train_flops is not None:
        return np.asarray((balance + beta * math.log(aim.train_flops)) / (alpha + beta))
    if aim.tokens is not None:
        return np.asarray((balance + beta * math.log(aim.tokens)) / alpha)
    return np.asarray((alpha * math.log(_given(aim.flops_per_token)) - balance) / beta)


def _declared_range(points: Points, aim: Aim, size_range: SizeRange) -> tuple[float, float]:
    """Ends of the free quantity's range; see :class:`SizeRange`.

    M = M_largest·growth^s and D = D_largest·growth^(1-s), so D fixed gives
    M = M_largest·(D/D_largest)^(s/(1-s)), and M fixed gives D by the inverse exponent.
    """
    largest = int(np.argmax(points.flops))
    size, tokens = points.size[largest], points.tokens[largest]
    ends = []
    for share in (size_range.least_share, size_range.most_share):
        if aim.train_flops is not None:
            ends.append(size * (aim.train_flops / (size * tokens)) ** share)
        elif aim.tokens is not None:
            ends.append(size * (aim.tokens / tokens) ** (share / (1 - share)))
        else:
            growth = _given(aim.flops_per_token) / size
            ends.append(tokens * growth ** ((1 - share) / share))
    return min(ends), max(ends)


def _formula(law: LossSurface) -> str:
    return f"{law.E:.3g} + {law.A:.3g}/M^{law.alpha:.3g} + {law.B:.3g}/D^{law.beta:.3g}"


def _exactly(value: float, level: float) -> Interval:
    return Interval(value=value, low=value, high=value, level=level)


def _given(value: float | None) -> float:
    assert value is not None, "an aim fixes exactly one quantity"
    return value
