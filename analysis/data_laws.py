"""Laws of training far past the optimum and of repeated data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import (
    POSITIVE_EXPONENT,
    Allocation,
    Array,
    LossSurface,
    Parametric,
    SaturatingPowerLaw,
    Term,
    least_loss,
)
from model.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OverTrainingLaw(Parametric):
    """L = E + (a·m^eta + b·m^-eta)·C^-eta with m = D/N (Gadre et al., arXiv:2403.08540, eq. 4).

    One exponent for size and tokens: the loss at a fixed ratio m falls by the same power of C
    whatever the ratio. With C = k·N·D it is a LossSurface with alpha = beta = 2·eta.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = ("E", "a", "b", "eta")
    VARIABLES: ClassVar[tuple[str, ...]] = ("flops", "tokens_per_size")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {"eta": POSITIVE_EXPONENT}

    kind: Literal["over_training"] = "over_training"
    E: float
    a: float
    b: float
    eta: float

    @staticmethod
    def formula(parameters: ArrayLike, flops: ArrayLike, tokens_per_size: ArrayLike) -> Array:
        """Losses for parameters [..., 4]; all broadcast."""
        E, a, b, eta = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        flops, ratio = np.asarray(flops, dtype=float), np.asarray(tokens_per_size, dtype=float)
        return np.asarray(E + (a * ratio**eta + b * ratio**-eta) * flops**-eta)

    @staticmethod
    def terms(flops: Array, tokens_per_size: Array) -> tuple[Term, ...]:
        """E + a·exp(eta·(ln m - ln C)) + b·exp(-eta·(ln m + ln C))."""
        log_flops, log_ratio = np.log(flops), np.log(tokens_per_size)
        return (
            Term(coefficient="E"),
            Term(coefficient="a", factors={"eta": log_ratio - log_flops}),
            Term(coefficient="b", factors={"eta": -log_ratio - log_flops}),
        )

    def __call__(self, flops: ArrayLike, tokens_per_size: ArrayLike) -> Array:
        """Loss at training FLOPs and tokens per unit of size."""
        return self.formula(self.parameters, flops, tokens_per_size)

    def compute(self, flops: ArrayLike, tokens_per_size: ArrayLike) -> Array:
        """What extrapolation is measured in: training FLOPs."""
        return np.asarray(flops, dtype=float) + 0 * np.asarray(tokens_per_size, dtype=float)

    def optimal_ratio(self) -> float:
        """The D/N of least loss at any compute: (b/a)^(1/(2·eta))."""
        if not (self.a > 0 and self.b > 0):
            raise ConfigError(
                f"no best tokens a unit of size: a = {self.a:g} and b = {self.b:g}, so loss falls "
                f"with {'the ratio' if self.b > 0 else 'its inverse'} alone"
            )
        return float((self.b / self.a) ** (1 / (2 * self.eta)))

    def frontier(self) -> SaturatingPowerLaw:
        """Loss at that ratio: E + 2·(a·b)^(1/2)·C^-eta."""
        ratio = self.optimal_ratio()
        a = self.a * ratio**self.eta + self.b * ratio**-self.eta
        return SaturatingPowerLaw(E=self.E, a=a, b=self.eta)

    def inverse(self, loss: float, tokens_per_size: float) -> float:
        """Training FLOPs at which the ratio reaches ``loss``."""
        if loss <= self.E:
            raise ConfigError(
                f"loss {loss:g} is never reached: the irreducible loss is {self.E:g} nats"
            )
        scale = self.a * tokens_per_size**self.eta + self.b * tokens_per_size**-self.eta
        return float(((loss - self.E) / scale) ** (-1 / self.eta))


HALF_LIFE_TOKENS = 15.387756
"""R*_D: repetitions after which a repeated token is worth 1/e of a new one (Muennighoff et al.)."""


@dataclass(frozen=True, kw_only=True)
class RepetitionLaw(Parametric):
    """L = E + A/N^alpha + B/D'^beta, where repeated tokens count less (Muennighoff et al.,
    arXiv:2305.16264, eq. 6): D' = U·(1 + R·(1 - exp(-(D/U - 1)/R))) for U unique tokens.

    R is not fitted but held, at the published 15.4. The paper's second half-life, of parameters
    beyond the best number for the unique tokens (N'), is left out: it discounts models that have
    repeated nothing, which would no longer be Hoffmann's.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta")
    VARIABLES: ClassVar[tuple[str, ...]] = ("size", "tokens", "unique_tokens")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "alpha": POSITIVE_EXPONENT,
        "beta": POSITIVE_EXPONENT,
    }

    kind: Literal["repetition"] = "repetition"
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @staticmethod
    def formula(
        parameters: ArrayLike, size: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike
    ) -> Array:
        """Losses for parameters [..., 5]; all broadcast."""
        E, A, B, alpha, beta = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        worth = effective_tokens(tokens, unique_tokens)
        return np.asarray(E + A * np.asarray(size, dtype=float) ** -alpha + B * worth**-beta)

    @staticmethod
    def terms(size: Array, tokens: Array, unique_tokens: Array) -> tuple[Term, ...]:
        """E + A · exp(-alpha·ln N) + B · exp(-beta·ln D')."""
        return (
            Term(coefficient="E"),
            Term(coefficient="A", factors={"alpha": -np.log(size)}),
            Term(
                coefficient="B", factors={"beta": -np.log(effective_tokens(tokens, unique_tokens))}
            ),
        )

    def __call__(self, size: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike) -> Array:
        """Loss at size, tokens seen and unique tokens."""
        return self.formula(self.parameters, size, tokens, unique_tokens)

    def compute(self, size: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike) -> Array:
        """What extrapolation is measured in: size times tokens seen."""
        product = np.asarray(size, dtype=float) * np.asarray(tokens, dtype=float)
        return np.asarray(product + 0 * np.asarray(unique_tokens, dtype=float))

    def inverse(self, loss: float, size: float, unique_tokens: float) -> float:
        """Tokens to be seen, repetitions included, for ``loss``."""
        left = loss - self.E - self.A * size**-self.alpha
        worth = math.exp(-math.log(left / self.B) / self.beta) if left > 0 else math.inf
        most = unique_tokens * (1 + HALF_LIFE_TOKENS)
        if worth >= most:
            raise ConfigError(
                f"loss {loss:g} is never reached at size {size:g} with {unique_tokens:g} unique "
                "tokens, however often they are repeated"
            )
        if worth <= unique_tokens:
            return worth
        repeats = -HALF_LIFE_TOKENS * math.log(1 - (worth / unique_tokens - 1) / HALF_LIFE_TOKENS)
        return unique_tokens * (1 + repeats)

    def optimum(
        self, flops: float, unique_tokens: float, flops_per_size_token: float = 1.0
    ) -> Allocation:
        """The size and tokens seen of least loss at ``flops``, where so many tokens are unique.

        C = flops_per_size_token · N · D. Until the tokens run out it is Hoffmann's; beyond them
        the size grows faster, for a repeated token is worth less than a new one.
        """
        pairs = flops / flops_per_size_token
        plain = LossSurface(E=self.E, A=self.A, B=self.B, alpha=self.alpha, beta=self.beta)
        size = plain.optimum(pairs).size
        if pairs / size > unique_tokens:
            size = least_loss(
                lambda sizes: self(sizes, pairs / sizes, unique_tokens),
                size / 4,
                pairs / unique_tokens,
            )
        tokens = pairs / size
        loss = float(self(size, tokens, unique_tokens))
        return Allocation(flops=flops, size=size, tokens=tokens, loss=loss)


def effective_tokens(tokens: ArrayLike, unique_tokens: ArrayLike) -> Array:
    """What ``tokens`` seen are worth in new ones, when only ``unique_tokens`` of them differ."""
    tokens, unique = np.asarray(tokens, dtype=float), np.asarray(unique_tokens, dtype=float)
    repeats = np.maximum(tokens / unique - 1, 0.0)
    worth = unique * (1 + HALF_LIFE_TOKENS * -np.expm1(-repeats / HALF_LIFE_TOKENS))
    return np.asarray(np.where(tokens <= unique, tokens, worth))
