"""How a fit is made: the values of ``conf/fit.yaml`` that decide its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.config import require, require_positive


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Loss, starts, bootstrap, hold-out."""

    loss: Literal["huber", "lad", "squares"] = "huber"
    """rho of the residual."""
    residual: Literal["log", "plain"] = "log"
    """log(measured) - log(law), or measured - law, as some published fits have it (for squares)."""
    huber_delta: float | None = None
    """Where Huber turns from squares to absolute values, in log-loss; null: see `delta_rule`."""
    held: dict[str, float] = field(default_factory=dict)
    """Parameters that are held and not fitted, e.g. {E: 1.6}: exponents, or the loss at infinity.
    """
    starts: int = 4500
    """Exponent vectors tried; the coefficients of each are solved exactly."""
    replicates: int = 1000
    """Bootstrap replicates."""
    seed: int = 0
    """Of the bootstrap's random numbers."""
    level: float = 0.9
    """Of every interval that is printed."""
    holdout_budgets: int = 3
    """The largest budget is left out, then the two largest, ... up to this many."""

    def __post_init__(self) -> None:
        require(
            self.residual == "log" or self.loss == "squares",
            f"residual=plain is for loss=squares, got loss={self.loss}",
        )
        require_positive(starts=self.starts, replicates=self.replicates)
        require(
            self.huber_delta is None or self.huber_delta > 0,
            f"huber_delta must be positive, got {self.huber_delta}",
        )
        require(
            self.replicates >= 100,
            f"replicates must be >= 100 for an interval to mean anything, got {self.replicates}",
        )
        require(0 < self.level < 1, f"level must be between 0 and 1, got {self.level}")
        require(
            self.holdout_budgets >= 0,
            f"holdout_budgets must be >= 0, got {self.holdout_budgets}",
        )
