"""What a fit and a prediction are: a law never travels without its evidence.

``FitError`` means no usable estimate exists; a :class:`FitStatus` on the result means there is one,
but look; :class:`~model.errors.ConfigError` means the caller can correct something.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class FitError(RuntimeError):
    """No usable estimate exists. The command line exits with 3."""


class FitStatus(Enum):
    """Soft trouble, carried on the result with a sentence for each."""

    AT_START = "a parameter never left its start value"
    AT_BOUND = "a parameter lies at its bound"
    STARTS_DISAGREE = "different starts ended in different optima"
    ILL_CONDITIONED = "the data leave a direction of the parameters free"
    FEW_POINTS = "few points for the number of parameters"
    FEW_BUDGETS = "too few distinct budgets or sizes"
    OUTLIERS = "some points lie far outside the residual spread"
    EDGE_OPTIMUM = "the optimum lies at the edge of what was tried"
    HOLDOUT_MISSED = "the held-out points lie outside their forecast"
    UNMEASURED_NOISE = "no repeated seeds: the noise floor is the fit's own residual"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """``low <= value <= high`` at ``level``; never a bare number."""

    value: float
    low: float
    high: float
    level: float = 0.9

    @property
    def width(self) -> float:
        """High minus low."""
        return self.high - self.low

    def contains(self, measured: float) -> bool:
        """Whether ``measured`` lies inside, ends included."""
        return self.low <= measured <= self.high


@dataclass(frozen=True, kw_only=True)
class Prediction(Interval):
    """An interval for something not yet measured, and how far from the evidence it lies."""

    extrapolation_ratio: float
    """Compute (or whatever the law's main variable is) over the largest the fit has seen."""


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A point left out of a fit, and why."""

    label: str
    """Run id, or ``row 17`` of a table."""
    reason: str
