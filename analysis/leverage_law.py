"""Efficiency leverage as a law of the loss: what a mixture reaches is what its dense equal would.

    L(C, A, G) = E + a·(C·EL)^-b,   EL = Â^(e + d·log10 C + g·(log2 G)² + h·log2 G)

with Â of :class:`~analysis.moe_laws.EfficiencyLeverage`, whose saturation starts at the published
A_start = 1.63e-2, held (arXiv:2507.17702, eq. 13). So runs of many activation ratios and
granularities, dense ones among them, are fitted together, and forecast held-out budgets like any
other law.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import POSITIVE_EXPONENT, Array, Parametric, Term
from analysis.moe_laws import EfficiencyLeverage, saturated_activation
from model.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LeverageLaw(Parametric):
    """L = E + a·(C·EL(A, G, C))^-b, EL = Â^(e + d·log10 C + g·(log2 G)² + h·log2 G)
    (arXiv:2507.17702, eq. 13).

    The exponents fitted are b, and b times each of the leverage's four.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = ("E", "a", "b", "be", "bd", "bg", "bh")
    VARIABLES: ClassVar[tuple[str, ...]] = ("flops", "activation_ratio", "granularity")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "b": POSITIVE_EXPONENT,
        "be": (-3.0, 3.0),
        "bd": (-0.2, 0.2),
        "bg": (-0.1, 0.1),
        "bh": (-1.0, 1.0),
    }

    kind: Literal["leverage"] = "leverage"
    E: float
    a: float
    b: float
    be: float
    bd: float
    bg: float
    bh: float

    @staticmethod
    def formula(
        parameters: ArrayLike, flops: ArrayLike, activation_ratio: ArrayLike, granularity: ArrayLike
    ) -> Array:
        """Losses for parameters [..., 7]; all broadcast."""
        E, a, b, be, bd, bg, bh = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        flops = np.asarray(flops, dtype=float)
        fine = np.log2(np.asarray(granularity, dtype=float))
        power = be + bd * np.log10(flops) + bg * fine**2 + bh * fine
        return np.asarray(E + a * flops**-b * saturated_activation(activation_ratio) ** -power)

    @staticmethod
    def terms(flops: Array, activation_ratio: Array, granularity: Array) -> tuple[Term, ...]:
        """E + a · exp(-b·ln C - ln Â · (be + bd·log10 C + bg·(log2 G)² + bh·log2 G))."""
        log_active, fine = np.log(saturated_activation(activation_ratio)), np.log2(granularity)
        return (
            Term(coefficient="E"),
            Term(
                coefficient="a",
                factors={
                    "b": -np.log(flops),
                    "be": -log_active,
                    "bd": -log_active * np.log10(flops),
                    "bg": -log_active * fine**2,
                    "bh": -log_active * fine,
                },
            ),
        )

    def __call__(
        self, flops: ArrayLike, activation_ratio: ArrayLike, granularity: ArrayLike
    ) -> Array:
        """Loss at training FLOPs, activation ratio and granularity."""
        return self.formula(self.parameters, flops, activation_ratio, granularity)

    def compute(
        self, flops: ArrayLike, activation_ratio: ArrayLike, granularity: ArrayLike
    ) -> Array:
        """What extrapolation is measured in: training FLOPs."""
        others = np.asarray(activation_ratio, dtype=float) + np.asarray(granularity, dtype=float)
        return np.asarray(flops, dtype=float) + 0 * others

    def leverage(self) -> EfficiencyLeverage:
        """EL(A, G, C) of this law."""
        return EfficiencyLeverage(
            a=self.be / self.b, d=self.bd / self.b, gamma=self.bg / self.b, beta=self.bh / self.b
        )

    def best_granularity(self) -> float:
        """The granularity of least loss, the same at every compute: 2^(-bh/(2·bg))."""
        if self.bg <= 0:
            raise ConfigError(
                f"no best granularity: the loss bends the wrong way in it (bg = {self.bg:g})"
            )
        return float(2 ** (-self.bh / (2 * self.bg)))

    def inverse(self, loss: float, activation_ratio: float, granularity: float) -> float:
        """Training FLOPs at which a mixture reaches ``loss``."""
        if loss <= self.E:
            raise ConfigError(
                f"loss {loss:g} is never reached: the irreducible loss is {self.E:g} nats"
            )
        log_active = float(np.log(saturated_activation(activation_ratio)))
        fine = float(np.log2(granularity))
        still = self.be + self.bg * fine**2 + self.bh * fine
        # ln((L - E)/a) = -b·ln C - ln Â·(still + bd·log10 C)
        slope = self.b + log_active * self.bd / np.log(10)
        return float(np.exp((-np.log((loss - self.E) / self.a) - log_active * still) / slope))
