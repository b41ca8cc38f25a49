"""From an aim to a size: what the fitted surface recommends, how well it knows, what is used.

Symbols as in analysis: C training FLOPs, M training FLOPs per token, D tokens; C = M·D. Along the
surface's frontier one of the three fixes the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.allocation import Optimum, optimum
from analysis.laws import LossSurface
from analysis.points import Points
from analysis.results import Fit, FitStatus, Interval
from model.config import require
from model.errors import ConfigError
from windtunnel.targets import Aim


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
    """How the optimum was found, in words."""
    optimum: Optimum
    """M and D of least loss at the aim's compute, or at the compute its size or tokens are optimal
    for."""
    flops_per_token: float
    """M to build: the optimum's, or one held to the declared range."""
    train_flops: float
    fixed_tokens: int | None
    """Where the aim fixes them; elsewhere the tokens follow the compute."""
    note: str
    """Why not the optimum; empty when it is used."""

    def tokens_at(self, flops_per_token: float) -> float:
        """Tokens for a shape near the chosen size."""
        if self.fixed_tokens is not None:
            return self.fixed_tokens
        return self.train_flops / flops_per_token


def allocate(fit: Fit, points: Points, aim: Aim, size_range: SizeRange, level: float) -> Allocated:
    """Spend ``aim`` at the fitted surface's optimum, or within the declared range.

    Raises:
        ConfigError: the fit's size variable is not flops_per_token, or it has no optimum.
    """
    law = fit.law
    if not isinstance(law, LossSurface) or points.size_variable != "flops_per_token":
        raise ConfigError(
            f"the fit's size is {points.size_variable}, a promotion needs flops_per_token: "
            "run `windtunnel fit` with its default size"
        )
    best = optimum(fit, _frontier_flops(law, aim), level)
    free = best.tokens if aim.flops_per_token is not None else best.size
    low, high = _declared_range(points, aim, size_range)
    doubts = _doubts(fit, best, free, size_range)
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
    elif aim.train_flops is not None:
        used, note = _held_to_growth(free.value, points, aim.train_flops)
    if used < aim.least_size:
        note = f"{note}; " if note else ""
        note += (
            f"a next rung is a model of at least {aim.least_size:.3g} (target.least_size_growth), "
            f"the choice was {used:.3g}"
        )
        used = aim.least_size
    size = used if aim.flops_per_token is None else aim.flops_per_token
    tokens = used if aim.flops_per_token is not None else aim.tokens
    flops = size * tokens if tokens is not None else best.flops
    return Allocated(
        law="least loss of the fitted L(M, D)",
        optimum=best,
        flops_per_token=size,
        train_flops=flops,
        fixed_tokens=aim.tokens,
        note=note,
    )


def _frontier_flops(law: LossSurface, aim: Aim) -> float:
    """The compute at which the aim's one quantity is optimal."""
    if aim.train_flops is not None:
        return aim.train_flops
    if not law.has_optimum:
        raise ConfigError(f"no optimum: the fit found A = {law.A:g} and B = {law.B:g}")
    if aim.tokens is not None:
        return law.optimal_tokens().inverse(aim.tokens)
    assert aim.flops_per_token is not None, "an aim fixes exactly one quantity"
    return law.optimal_size().inverse(aim.flops_per_token)


def _doubts(fit: Fit, best: Optimum, free: Interval, size_range: SizeRange) -> list[str]:
    """Why the optimum can't be trusted as it stands; empty when it can."""
    doubts = []
    if free.high / free.low > size_range.open_ratio:
        doubts.append(f"its interval spans a factor of {free.high / free.low:.3g}")
    if best.open_frac > (1 - free.level) / 2:
        doubts.append(f"{best.open_frac:.0%} of the bootstrap's draws have none")
    if FitStatus.EDGE_OPTIMUM in fit.statuses():
        doubts.append("already inside the sweep it lies at the edge of the sizes tried")
    return doubts


def _held_to_growth(size: float, points: Points, train_flops: float) -> tuple[float, str]:
    """The optimum's size, or the nearest at which neither axis outruns compute; and why.

    An optimum far along one axis shrinks the other below what was measured: with 60 times the
    tokens for 6 times the compute, the law would speak of a region that no run has been near.
    """
    growth = train_flops / max(points.flops)
    low = train_flops / (growth * max(points.tokens))
    high = growth * max(points.size)
    used = min(max(size, low), high)
    if used == size:
        return size, ""
    axis = "tokens" if size < low else "size"
    most = max(points.tokens) if size < low else max(points.size)
    asked = (train_flops / size if size < low else size) / most
    return used, (
        f"the optimum asks for {asked:.3g} times the largest {axis} measured at {growth:.3g} times "
        f"the compute; the {axis} are held to {growth:.3g} times, so that the law is not asked "
        "further along one axis than in compute"
    )


def _declared_range(points: Points, aim: Aim, size_range: SizeRange) -> tuple[float, float]:
    """Ends of the range of what the aim leaves free (D where M is fixed, else M).

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
        elif aim.flops_per_token is not None:
            ends.append(tokens * (aim.flops_per_token / size) ** ((1 - share) / share))
    return min(ends), max(ends)


def formula(law: LossSurface) -> str:
    """The surface in numbers."""
    return f"{law.E:.3g} + {law.A:.3g}/M^{law.alpha:.3g} + {law.B:.3g}/D^{law.beta:.3g}"
