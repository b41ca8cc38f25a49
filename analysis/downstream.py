"""Downstream error as it follows from the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import Array, Parametric
from model.errors import ConfigError

GAMMA_RANGE = (1e-3, 30.0)


@dataclass(frozen=True, kw_only=True)
class DownstreamLaw(Parametric):
    """y = epsilon - k·exp(-gamma·L), the error y against the loss L (Gadre et al.,
    arXiv:2403.08540, eq. 5)."""

    PARAMETERS: ClassVar[tuple[str, ...]] = ("epsilon", "k", "gamma")
    VARIABLES: ClassVar[tuple[str, ...]] = ("pretraining_loss",)
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {"gamma": GAMMA_RANGE}

    kind: Literal["downstream"] = "downstream"
    epsilon: float
    k: float
    gamma: float

    @staticmethod
    def formula(parameters: ArrayLike, pretraining_loss: ArrayLike) -> Array:
        """Errors for parameters [..., 3]; the two broadcast. At least 1e-6: its log is taken."""
        epsilon, k, gamma = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        loss = np.asarray(pretraining_loss, dtype=float)
        return np.asarray(np.maximum(epsilon - k * np.exp(-gamma * loss), 1e-6))

    def __call__(self, pretraining_loss: ArrayLike) -> Array:
        """Error at a loss."""
        return self.formula(self.parameters, pretraining_loss)

    def compute(self, pretraining_loss: ArrayLike) -> Array:
        """What extrapolation is measured in: exp(-L), for a lower loss lies further."""
        return np.exp(-np.asarray(pretraining_loss, dtype=float))

    def inverse(self, error: float) -> float:
        """The loss at which the law gives ``error``."""
        if not error < self.epsilon:
            raise ConfigError(f"error {error:g} lies above every loss's: {self.epsilon:g} at most")
        return float(-np.log((self.epsilon - error) / self.k) / self.gamma)
