"""The unified law of routed models: log loss bilinear in log size and log of experts, saturating.

    ln L = a·ln N + b·ln Ê + c·ln N·ln Ê + d,   1/Ê = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max

(Clark et al., arXiv:2202.01169, eqs. 6 and 8; c, and d, depend on the logs' base: natural here, 10
in the paper.) Fitted by :mod:`analysis.routed_fit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import Array, Parametric
from model.errors import ConfigError

LN10 = float(np.log(10))


@dataclass(frozen=True, kw_only=True)
class RoutedLaw(Parametric):
    """ln L = a·ln N + b·ln Ê + c·ln N·ln Ê + d, Ê between E_start and E_max (Clark et al.,
    arXiv:2202.01169, eq. 8)."""

    PARAMETERS: ClassVar[tuple[str, ...]] = ("a", "b", "c", "d", "E_start", "E_max")
    VARIABLES: ClassVar[tuple[str, ...]] = ("size", "num_experts")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "a": (-1.0, 1.0),
        "b": (-5.0, 5.0),
        "c": (-1.0, 1.0),
        "d": (-50.0, 50.0),
    }

    kind: Literal["routed"] = "routed"
    a: float
    b: float
    c: float
    d: float
    E_start: float
    E_max: float

    @staticmethod
    def formula(parameters: ArrayLike, size: ArrayLike, num_experts: ArrayLike) -> Array:
        """Losses for parameters [..., 6]; all broadcast."""
        a, b, c, d, start, most = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        log_size = np.log(np.asarray(size, dtype=float))
        log_experts = np.log(saturated(num_experts, start, most))
        return np.asarray(np.exp(a * log_size + (b + c * log_size) * log_experts + d))

    def __call__(self, size: ArrayLike, num_experts: ArrayLike) -> Array:
        """Loss at size and number of experts."""
        return self.formula(self.parameters, size, num_experts)

    def compute(self, size: ArrayLike, num_experts: ArrayLike) -> Array:
        """What extrapolation is measured in: the dense size, which decides a token's compute."""
        return np.asarray(size, dtype=float) + 0 * np.asarray(num_experts, dtype=float)

    def effective_size(self, size: float, num_experts: float) -> float:
        """Size of the model without routing that has the same loss (the paper's EPC)."""
        return self.inverse(float(self(size, num_experts)), 1.0)

    def inverse(self, loss: float, num_experts: float) -> float:
        """The dense size at which ``num_experts`` experts reach ``loss``."""
        log_experts = float(np.log(saturated(num_experts, self.E_start, self.E_max)))
        slope = self.a + self.c * log_experts
        if slope >= 0:
            raise ConfigError(
                f"with {num_experts:g} experts the loss does not fall with size: {loss:g} nats "
                "has no size"
            )
        return float(np.exp((np.log(loss) - self.d - self.b * log_experts) / slope))

    def cutoff_size(self) -> float:
        """The dense size from which on more experts help no more: exp(-b/c), its N_cutoff."""
        if not (self.b < 0 < self.c):
            raise ConfigError(f"no size ends the gain from experts: b = {self.b:g}, c = {self.c:g}")
        return float(np.exp(-self.b / self.c))

    def base_10(self) -> dict[str, float]:
        """The coefficients as the paper prints them, for log10 of everything."""
        return {"a": self.a, "b": self.b, "c": self.c * LN10, "d": self.d / LN10}


def saturated(num_experts: ArrayLike, start: ArrayLike, most: ArrayLike) -> Array:
    """Ê: E at first, E_max in the end, E_start for one expert."""
    experts = np.asarray(num_experts, dtype=float)
    start, most = np.asarray(start, dtype=float), np.asarray(most, dtype=float)
    offset = 1 / (1 / start - 1 / most)
    return np.asarray(1 / (1 / (experts - 1 + offset) + 1 / most))
