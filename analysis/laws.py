"""The laws: frozen callables with their inverses and optima. A law knows nothing of data.

Symbols: C training FLOPs, M training FLOPs per token, N a size (M or a parameter count, the
caller says which), D tokens, L loss in nats per token, E irreducible loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.errors import ConfigError

Array = NDArray[np.float64]

POSITIVE_EXPONENT = (0.01, 3.0)
"""Where exponents of diminishing returns are searched; published ones lie between 0.03 and 1."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a law: coefficient · exp(sum of parameter · factor), as the fitters see it."""

    coefficient: str
    """Name of the coefficient; it is never negative."""
    factors: Mapping[str, Array] = field(default_factory=dict)
    """By parameter, what it multiplies in the exponent, at each point."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A compute budget spent at its optimum."""

    flops: float
    size: float
    tokens: float
    loss: float


class Parametric:
    """A law that is decided by the parameters it names."""

    PARAMETERS: ClassVar[tuple[str, ...]]

    @property
    def parameters(self) -> Array:
        """The parameters in the order of ``PARAMETERS``."""
        return np.array([getattr(self, name) for name in self.PARAMETERS])


@dataclass(frozen=True, kw_only=True)
class PowerLaw(Parametric):
    """y = a · x^b."""

    PARAMETERS: ClassVar[tuple[str, ...]] = ("a", "b")
    VARIABLES: ClassVar[tuple[str, ...]] = ("x",)
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {"b": (-5.0, 5.0)}

    kind: Literal["power_law"] = "power_law"
    a: float
    b: float

    @staticmethod
    def formula(parameters: ArrayLike, x: ArrayLike) -> Array:
        """Values at ``x`` for parameters [..., 2]; the two broadcast."""
        a, b = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        return np.asarray(a * np.asarray(x, dtype=float) ** b)

    @staticmethod
    def terms(x: Array) -> tuple[Term, ...]:
        """a · exp(b·ln x)."""
        return (Term(coefficient="a", factors={"b": np.log(x)}),)

    def __call__(self, x: ArrayLike) -> Array:
        """y at ``x``."""
        return self.formula(self.parameters, x)

    def inverse(self, y: float) -> float:
        """The x at which the law gives ``y``."""
        if self.b == 0:
            raise ConfigError("a power law with exponent 0 has no inverse")
        return float((y / self.a) ** (1 / self.b))

    def compute(self, x: ArrayLike) -> Array:
        """What extrapolation is measured in: x itself."""
        return np.asarray(x, dtype=float)


@dataclass(frozen=True, kw_only=True)
class SaturatingPowerLaw(Parametric):
    """L(C) = E + a · C^-b (Henighan et al., arXiv:2010.14701)."""

    PARAMETERS: ClassVar[tuple[str, ...]] = ("E", "a", "b")
    VARIABLES: ClassVar[tuple[str, ...]] = ("flops",)
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {"b": POSITIVE_EXPONENT}

    kind: Literal["saturating_power_law"] = "saturating_power_law"
    E: float
    a: float
    b: float

    @staticmethod
    def formula(parameters: ArrayLike, flops: ArrayLike) -> Array:
        """Losses at ``flops`` for parameters [..., 3]; the two broadcast."""
        E, a, b = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        return np.asarray(E + a * np.asarray(flops, dtype=float) ** -b)

    @staticmethod
    def terms(flops: Array) -> tuple[Term, ...]:
        """E + a · exp(-b·ln C)."""
        return (Term(coefficient="E"), Term(coefficient="a", factors={"b": -np.log(flops)}))

    def __call__(self, flops: ArrayLike) -> Array:
        """Loss at ``flops``."""
        return self.formula(self.parameters, flops)

    def inverse(self, loss: float) -> float:
        """Training FLOPs (or what the law's variable is) at which it reaches ``loss``."""
        if loss <= self.E:
            raise ConfigError(
                f"loss {loss:g} is never reached: the irreducible loss is {self.E:g} nats"
            )
        return float(((loss - self.E) / self.a) ** (-1 / self.b))

    def compute(self, flops: ArrayLike) -> Array:
        """What extrapolation is measured in: training FLOPs."""
        return np.asarray(flops, dtype=float)


@dataclass(frozen=True, kw_only=True)
class SizeLaw(SaturatingPowerLaw):
    """L(N) = E + a · N^-b: trained until tokens no longer matter (Kaplan et al., arXiv:2001.08361,
    eq. 1.1, with an irreducible loss). Its inverse is a size."""

    VARIABLES: ClassVar[tuple[str, ...]] = ("size",)

    kind: Literal["size_law"] = "size_law"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class TokenLaw(SaturatingPowerLaw):
    """L(D) = E + a · D^-b: of one model, or of models large enough (arXiv:2001.08361, eq. 1.2)."""

    VARIABLES: ClassVar[tuple[str, ...]] = ("tokens",)

    kind: Literal["token_law"] = "token_law"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class LossSurface(Parametric):
    """L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al., arXiv:2203.15556, eq. 2)."""

    PARAMETERS: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta")
    VARIABLES: ClassVar[tuple[str, ...]] = ("size", "tokens")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "alpha": POSITIVE_EXPONENT,
        "beta": POSITIVE_EXPONENT,
    }

    kind: Literal["loss_surface"] = "loss_surface"
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    flops_per_size_token: float = 1.0
    """C = flops_per_size_token · N · D: 1 where N is M (flops_per_token), 6 for parameters."""

    @staticmethod
    def formula(parameters: ArrayLike, size: ArrayLike, tokens: ArrayLike) -> Array:
        """Losses at (size, tokens) for parameters [..., 5]; all broadcast."""
        E, A, B, alpha, beta = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        size, tokens = np.asarray(size, dtype=float), np.asarray(tokens, dtype=float)
        return np.asarray(E + A * size**-alpha + B * tokens**-beta)

    @staticmethod
    def terms(size: Array, tokens: Array) -> tuple[Term, ...]:
        """E + A · exp(-alpha·ln N) + B · exp(-beta·ln D)."""
        return (
            Term(coefficient="E"),
            Term(coefficient="A", factors={"alpha": -np.log(size)}),
            Term(coefficient="B", factors={"beta": -np.log(tokens)}),
        )

    def __call__(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss at ``size`` and ``tokens``."""
        return self.formula(self.parameters, size, tokens)

    def compute(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """Training FLOPs of ``size`` and ``tokens``."""
        product = np.asarray(size, dtype=float) * np.asarray(tokens, dtype=float)
        return np.asarray(self.flops_per_size_token * product)

    @property
    def has_optimum(self) -> bool:
        """Whether both terms are there, so that some split of compute between them is the best."""
        return self.A > 0 and self.B > 0

    def optimum(self, flops: float) -> Allocation:
        """The size and tokens of least loss at ``flops``.

        With C = k·N·D fixed, dL/dN = 0 gives alpha·A·N^-alpha = beta·B·D^-beta, so
        N = G·(C/k)^(beta/(alpha+beta)) with G = (alpha·A / (beta·B))^(1/(alpha+beta)), D = C/(k·N).
        """
        if not self.has_optimum:
            raise ConfigError(
                f"no compute-optimal size: A = {self.A:g} and B = {self.B:g}, so loss falls with "
                f"{'tokens' if self.B > 0 else 'size'} alone"
            )
        total = self.alpha + self.beta
        ratio = flops / self.flops_per_size_token
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        size = balance * ratio ** (self.beta / total)
        tokens = ratio / size
        return Allocation(flops=flops, size=size, tokens=tokens, loss=float(self(size, tokens)))

    def frontier(self) -> SaturatingPowerLaw:
        """Loss along the optimum: E + a·C^-b with b = alpha·beta/(alpha+beta), in closed form."""
        b = self.alpha * self.beta / (self.alpha + self.beta)
        at_one = self.optimum(1.0)
        return SaturatingPowerLaw(E=self.E, a=at_one.loss - self.E, b=b)

    def optimal_size(self) -> PowerLaw:
        """N*(C), the size of least loss against training FLOPs."""
        return PowerLaw(a=self.optimum(1.0).size, b=self.beta / (self.alpha + self.beta))

    def optimal_tokens(self) -> PowerLaw:
        """D*(C), the tokens of least loss against training FLOPs."""
        return PowerLaw(a=self.optimum(1.0).tokens, b=self.alpha / (self.alpha + self.beta))

    def inverse(self, loss: float) -> float:
        """The least training FLOPs at which ``loss`` is reached."""
        return self.frontier().inverse(loss)

    def tokens_for(self, loss: float, size: float) -> float:
        """Tokens at which a model of ``size`` reaches ``loss``."""
        left = loss - self.E - self.A * size**-self.alpha
        if left <= 0:
            floor = self.E + self.A * size**-self.alpha
            raise ConfigError(
                f"loss {loss:g} is never reached at size {size:g}: its limit is {floor:g} nats"
            )
        return math.exp(-math.log(left / self.B) / self.beta)


LEAST_RUNS = len(LossSurface.PARAMETERS) + 1
"""Of a fit of L(N, D): its parameters, and one run to know their noise by."""


def least_loss(loss_at: Callable[[Array], Array], low: float, high: float) -> float:
    """The size between two of least loss, by a grid that closes in; one valley is assumed.

    ``loss_at`` takes sizes [S]. To eight digits: nearer the loss of neighbours is one float.
    """
    left, right = math.log(low), math.log(high)
    while right - left > 1e-8:
        grid = np.linspace(left, right, 33)
        at = int(np.argmin(loss_at(np.exp(grid))))
        left, right = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, 32)])
    return math.exp((left + right) / 2)
