"""Laws with the variables of a mixture of experts: how many experts, how fine, how sparse.

Each is a sum of terms whose logs are linear in the parameters, so one fitter serves them all.
"""

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
    Term,
    least_loss,
)
from analysis.routed import saturated
from model.errors import ConfigError

PUBLISHED_START, PUBLISHED_MOST = 1.63e-2, 5.28e16
"""Where Ling's activation saturates (arXiv:2507.17702, table 3)."""
PUBLISHED_EXPERTS = (2.0732, 290.4521)
"""E_start and E_max, where the number of experts saturates (arXiv:2502.05172, table 3)."""
HALVINGS = 60
"""Of an interval in log size: to the last digit of a float."""
EITHER_SIGN = (-1.0, 1.0)
CROSS = (-0.1, 0.1)
"""A product of two logs moves an exponent along the ladder; more than 0.1 a unit would turn it."""


@dataclass(frozen=True, kw_only=True)
class GranularityLaw(Parametric):
    """L = c + (g/G^gamma + a)/N^alpha + b/D^beta (Krajewski et al., arXiv:2402.07871, eq. 9)."""

    PARAMETERS: ClassVar[tuple[str, ...]] = ("c", "g", "a", "b", "gamma", "alpha", "beta")
    VARIABLES: ClassVar[tuple[str, ...]] = ("size", "tokens", "granularity")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "gamma": POSITIVE_EXPONENT,
        "alpha": POSITIVE_EXPONENT,
        "beta": POSITIVE_EXPONENT,
    }

    kind: Literal["granularity"] = "granularity"
    c: float
    g: float
    a: float
    b: float
    gamma: float
    alpha: float
    beta: float

    @staticmethod
    def formula(
        parameters: ArrayLike, size: ArrayLike, tokens: ArrayLike, granularity: ArrayLike
    ) -> Array:
        """Losses for parameters [..., 7]; all broadcast."""
        c, g, a, b, gamma, alpha, beta = np.moveaxis(np.asarray(parameters, dtype=float), -1, 0)
        size, tokens = np.asarray(size, dtype=float), np.asarray(tokens, dtype=float)
        fine = g * np.asarray(granularity, dtype=float) ** -gamma + a
        return np.asarray(c + fine * size**-alpha + b * tokens**-beta)

    @staticmethod
    def terms(size: Array, tokens: Array, granularity: Array) -> tuple[Term, ...]:
        """The bracket multiplied out."""
        size_log = -np.log(size)
        return (
            Term(coefficient="c"),
            Term(coefficient="g", factors={"gamma": -np.log(granularity), "alpha": size_log}),
            Term(coefficient="a", factors={"alpha": size_log}),
            Term(coefficient="b", factors={"beta": -np.log(tokens)}),
        )

    def __call__(self, size: ArrayLike, tokens: ArrayLike, granularity: ArrayLike) -> Array:
        """Loss at size, tokens and granularity."""
        return self.formula(self.parameters, size, tokens, granularity)

    def inverse(self, loss: float, tokens: float, granularity: float) -> float:
        """The size that reaches ``loss`` on so many tokens; ConfigError where none does."""
        limit = self.c + self.b * tokens**-self.beta
        fine = self.g * granularity**-self.gamma + self.a
        return _inverse_power(loss, limit, fine, self.alpha, f"on {tokens:g} tokens")

    def tokens_for(self, loss: float, size: float, granularity: float) -> float:
        """Tokens at which a model of ``size`` reaches ``loss``; ConfigError where none do."""
        fine = self.g * granularity**-self.gamma + self.a
        limit = self.c + fine * size**-self.alpha
        return _inverse_power(loss, limit, self.b, self.beta, f"at size {size:g}")

    def surface(self, granularity: float, flops_per_size_token: float = 1.0) -> LossSurface:
        """L(N, D) at one granularity, with its optimum and frontier.

        Finer is always better in this law. What ends it is the router's cost, which is none of its
        variables (the paper's section 6 adds it to the FLOPs).
        """
        return LossSurface(
            E=self.c,
            A=self.g * granularity**-self.gamma + self.a,
            B=self.b,
            alpha=self.alpha,
            beta=self.beta,
            flops_per_size_token=flops_per_size_token,
        )

    def compute(self, size: ArrayLike, tokens: ArrayLike, granularity: ArrayLike) -> Array:
        """What extrapolation is measured in: size times tokens."""
        return _product(size, tokens, granularity)


@dataclass(frozen=True, kw_only=True)
class JointExpertLaw(Parametric):
    """L = c + a·Ê^delta·N^-(alpha + gamma·ln Ê) + b·Ê^omega·D^-(beta + zeta·ln Ê) (Ludziejewski et
    al., arXiv:2502.05172, eq. 6), N active parameters, Ê the number of experts as it saturates
    (:func:`~analysis.routed.saturated`) between the published 2.07 and 290, which are held.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = (
        "c", "a", "b", "delta", "alpha", "gamma", "omega", "beta", "zeta",
    )  # fmt: skip
    VARIABLES: ClassVar[tuple[str, ...]] = ("size", "tokens", "num_experts")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "delta": EITHER_SIGN,
        "alpha": POSITIVE_EXPONENT,
        "gamma": CROSS,
        "omega": EITHER_SIGN,
        "beta": POSITIVE_EXPONENT,
        "zeta": CROSS,
    }

    kind: Literal["joint_experts"] = "joint_experts"
    c: float
    a: float
    b: float
    delta: float
    alpha: float
    gamma: float
    omega: float
    beta: float
    zeta: float

    @staticmethod
    def formula(
        parameters: ArrayLike, size: ArrayLike, tokens: ArrayLike, num_experts: ArrayLike
    ) -> Array:
        """Losses for parameters [..., 9]; all broadcast."""
        c, a, b, delta, alpha, gamma, omega, beta, zeta = np.moveaxis(
            np.asarray(parameters, dtype=float), -1, 0
        )
        size, tokens = np.asarray(size, dtype=float), np.asarray(tokens, dtype=float)
        log_experts = np.log(saturated(num_experts, *PUBLISHED_EXPERTS))
        of_size = a * np.exp(delta * log_experts) * size ** -(alpha + gamma * log_experts)
        of_tokens = b * np.exp(omega * log_experts) * tokens ** -(beta + zeta * log_experts)
        return np.asarray(c + of_size + of_tokens)

    @staticmethod
    def terms(size: Array, tokens: Array, num_experts: Array) -> tuple[Term, ...]:
        """Both powers as exponentials of sums."""
        log_size, log_tokens = np.log(size), np.log(tokens)
        log_experts = np.log(saturated(num_experts, *PUBLISHED_EXPERTS))
        return (
            Term(coefficient="c"),
            Term(
                coefficient="a",
                factors={
                    "delta": log_experts,
                    "alpha": -log_size,
                    "gamma": -log_size * log_experts,
                },
            ),
            Term(
                coefficient="b",
                factors={
                    "omega": log_experts,
                    "beta": -log_tokens,
                    "zeta": -log_tokens * log_experts,
                },
            ),
        )

    def __call__(self, size: ArrayLike, tokens: ArrayLike, num_experts: ArrayLike) -> Array:
        """Loss at size, tokens and number of experts."""
        return self.formula(self.parameters, size, tokens, num_experts)

    def inverse(self, loss: float, tokens: float, num_experts: float) -> float:
        """The size that reaches ``loss`` on so many tokens; ConfigError where none does."""
        one = self.surface(num_experts)
        limit = one.E + one.B * tokens**-one.beta
        return _inverse_power(loss, limit, one.A, one.alpha, f"on {tokens:g} tokens")

    def tokens_for(self, loss: float, size: float, num_experts: float) -> float:
        """Tokens at which a model of ``size`` reaches ``loss``; ConfigError where none do."""
        one = self.surface(num_experts)
        limit = one.E + one.A * size**-one.alpha
        return _inverse_power(loss, limit, one.B, one.beta, f"at size {size:g}")

    def surface(self, num_experts: float, flops_per_size_token: float = 1.0) -> LossSurface:
        """L(N, D) with so many experts, with its optimum and frontier (the paper's table 4)."""
        experts = float(saturated(num_experts, *PUBLISHED_EXPERTS))
        log_experts = math.log(experts)
        return LossSurface(
            E=self.c,
            A=self.a * experts**self.delta,
            B=self.b * experts**self.omega,
            alpha=self.alpha + self.gamma * log_experts,
            beta=self.beta + self.zeta * log_experts,
            flops_per_size_token=flops_per_size_token,
        )

    def compute(self, size: ArrayLike, tokens: ArrayLike, num_experts: ArrayLike) -> Array:
        """What extrapolation is measured in: size times tokens."""
        return _product(size, tokens, num_experts)


@dataclass(frozen=True, kw_only=True)
class SparsityLaw(Parametric):
    """L = e + a/N^alpha + b/D^beta + c/A^lambda_ + d/(A^delta·N^gamma), A = 1 - S the share of
    experts at work (Abnar et al., arXiv:2501.12370, eq. 5).
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = (
        "e", "a", "b", "c", "d", "alpha", "beta", "lambda_", "delta", "gamma",
    )  # fmt: skip
    VARIABLES: ClassVar[tuple[str, ...]] = ("size", "tokens", "activation_ratio")
    EXPONENTS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "alpha": POSITIVE_EXPONENT,
        "beta": POSITIVE_EXPONENT,
        "lambda_": EITHER_SIGN,
        "delta": EITHER_SIGN,
        "gamma": POSITIVE_EXPONENT,
    }

    kind: Literal["sparsity"] = "sparsity"
    e: float
    a: float
    b: float
    c: float
    d: float
    alpha: float
    beta: float
    lambda_: float
    delta: float
    gamma: float

    @staticmethod
    def formula(
        parameters: ArrayLike, size: ArrayLike, tokens: ArrayLike, activation_ratio: ArrayLike
    ) -> Array:
        """Losses for parameters [..., 10]; all broadcast."""
        e, a, b, c, d, alpha, beta, lambda_, delta, gamma = np.moveaxis(
            np.asarray(parameters, dtype=float), -1, 0
        )
        size, tokens = np.asarray(size, dtype=float), np.asarray(tokens, dtype=float)
        active = np.asarray(activation_ratio, dtype=float)
        plain = e + a * size**-alpha + b * tokens**-beta
        return np.asarray(plain + c * active**-lambda_ + d * active**-delta * size**-gamma)

    @staticmethod
    def terms(size: Array, tokens: Array, activation_ratio: Array) -> tuple[Term, ...]:
        """Five powers as exponentials."""
        log_size, log_active = np.log(size), np.log(activation_ratio)
        return (
            Term(coefficient="e"),
            Term(coefficient="a", factors={"alpha": -log_size}),
            Term(coefficient="b", factors={"beta": -np.log(tokens)}),
            Term(coefficient="c", factors={"lambda_": -log_active}),
            Term(coefficient="d", factors={"delta": -log_active, "gamma": -log_size}),
        )

    def __call__(self, size: ArrayLike, tokens: ArrayLike, activation_ratio: ArrayLike) -> Array:
        """Loss at size, tokens and activation ratio."""
        return self.formula(self.parameters, size, tokens, activation_ratio)

    def inverse(self, loss: float, tokens: float, activation_ratio: float) -> float:
        """The size that reaches ``loss`` on so many tokens; ConfigError where none does."""
        limit = self.e + self.b * tokens**-self.beta + self.c * activation_ratio**-self.lambda_
        sparse = self.d * activation_ratio**-self.delta
        where = f"on {tokens:g} tokens"
        # Two powers have no closed inverse. Either alone needs no more than both; where each is at
        # most half of what is left, both reach it.
        powers = [p for p in ((self.a, self.alpha), (sparse, self.gamma)) if p[0] > 0]
        if not powers:
            raise ConfigError(f"loss {loss:g} {where} has no inverse: no term falls with size")
        low, high = (
            max(
                math.log(_inverse_power(aim, limit, factor, power, where))
                for factor, power in powers
            )
            for aim in (loss, (loss + limit) / 2)
        )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = float(self(math.exp(middle), tokens, activation_ratio)) > loss
            low, high = (middle, high) if above else (low, middle)
        return math.exp((low + high) / 2)

    def tokens_for(self, loss: float, size: float, activation_ratio: float) -> float:
        """Tokens at which a model of ``size`` reaches ``loss``; ConfigError where none do."""
        sparse = self.d * activation_ratio**-self.delta * size**-self.gamma
        limit = self.e + self.a * size**-self.alpha + self.c * activation_ratio**-self.lambda_
        where = f"at size {size:g}"
        return _inverse_power(loss, limit + sparse, self.b, self.beta, where)

    def optimum(
        self, flops: float, activation_ratio: float, flops_per_size_token: float = 1.0
    ) -> Allocation:
        """The size and tokens of least loss at ``flops`` and one share of experts at work.

        C = flops_per_size_token · N · D; where N counts all parameters, 6 times their active share.
        Two powers fall with size, so it has no closed form; each alone has one, and these enclose
        it.
        """
        sparse = self.d * activation_ratio**-self.delta
        powers = [p for p in ((self.a, self.alpha), (sparse, self.gamma)) if p[0] > 0]
        if not powers or self.b <= 0:
            raise ConfigError(
                "no compute-optimal size: "
                + ("no term falls with size" if not powers else f"b = {self.b:g}")
            )
        pairs = flops / flops_per_size_token
        alone = [
            LossSurface(E=0, A=factor, B=self.b, alpha=power, beta=self.beta).optimum(pairs).size
            for factor, power in powers
        ]
        # Both together pull to larger sizes than either: at most as if each were all of twice both.
        both = [
            LossSurface(E=0, A=2 * f, B=self.b, alpha=p, beta=self.beta).optimum(pairs).size
            for f, p in powers
        ]
        size = least_loss(
            lambda sizes: self(sizes, pairs / sizes, activation_ratio), max(alone), max(both)
        )
        tokens = pairs / size
        loss = float(self(size, tokens, activation_ratio))
        return Allocation(flops=flops, size=size, tokens=tokens, loss=loss)

    def compute(self, size: ArrayLike, tokens: ArrayLike, activation_ratio: ArrayLike) -> Array:
        """What extrapolation is measured in: size times tokens."""
        return _product(size, tokens, activation_ratio)


@dataclass(frozen=True, kw_only=True)
class EfficiencyLeverage:
    """EL(A, G, C): the compute a dense model needs over the mixture's, at equal loss.

    EL = Â^(alpha + gamma·(log2 G)² + beta·log2 G) with alpha = a + d·log10 C and the saturating
    1/Â = 1/(A + 1/(1/A_start - 1/A_max)) + 1/A_max (arXiv:2507.17702, eqs. 10 and 13). The defaults
    are the published constants. The paper does not state its bases; log10 for C and log2 for G give
    back its text (more than 7 at A = 3.1%, G = 12, C = 1e22; the best G near 12), others do not.
    """

    kind: Literal["efficiency_leverage"] = "efficiency_leverage"
    a: float = 1.23
    d: float = -7.61e-2
    gamma: float = 1.67e-2
    beta: float = -1.17e-1
    A_start: float = PUBLISHED_START
    A_max: float = PUBLISHED_MOST

    def __call__(self, activation: ArrayLike, granularity: ArrayLike, flops: ArrayLike) -> Array:
        """EL at activation ratio A, granularity G, training FLOPs C."""
        saturated = saturated_activation(activation, self.A_start, self.A_max)
        fine = np.log2(np.asarray(granularity, dtype=float))
        power = self.a + self.d * np.log10(np.asarray(flops, dtype=float))
        return np.asarray(saturated ** (power + self.gamma * fine**2 + self.beta * fine))

    def best_granularity(self) -> float:
        """The granularity of most leverage, the same at every compute: 2^(-beta/(2·gamma))."""
        return float(2 ** (-self.beta / (2 * self.gamma)))

    def inverse(self, leverage: float, granularity: float, flops: float) -> float:
        """The activation ratio at which the mixture reaches ``leverage``.

        Raises:
            ConfigError: no ratio does: the leverage of a model without active experts is finite.
        """
        fine = math.log2(granularity)
        power = self.a + self.d * math.log10(flops) + self.gamma * fine**2 + self.beta * fine
        most = float(self(0.0, granularity, flops))
        if power == 0 or not (leverage < most if power < 0 else leverage > most):
            raise ConfigError(
                f"a leverage of {leverage:g} is never reached at granularity {granularity:g} and "
                f"{flops:g} FLOPs: the limit is {most:.4g}"
            )
        saturation = leverage ** (1 / power)
        start = 1 / (1 / self.A_start - 1 / self.A_max)
        return 1 / (1 / saturation - 1 / self.A_max) - start


def saturated_activation(
    activation: ArrayLike, start: float = PUBLISHED_START, most: float = PUBLISHED_MOST
) -> Array:
    """Â: A plus what is left of it for A = 0, at most A_max."""
    offset = 1 / (1 / start - 1 / most)
    return np.asarray(1 / (1 / (np.asarray(activation, dtype=float) + offset) + 1 / most))


def _inverse_power(
    loss: float, limit: float, coefficient: float, exponent: float, where: str
) -> float:
    """The x with limit + coefficient · x^-exponent = loss."""
    if loss <= limit:
        raise ConfigError(f"loss {loss:g} is never reached {where}: the limit is {limit:g} nats")
    if coefficient <= 0 or exponent <= 0:
        raise ConfigError(
            f"loss {loss:g} {where} has no inverse: the term is "
            f"{coefficient:.3g} · x^-({exponent:.3g}) and does not fall"
        )
    return math.exp(math.log(coefficient / (loss - limit)) / exponent)


def _product(size: ArrayLike, tokens: ArrayLike, third: ArrayLike) -> Array:
    product = np.asarray(size, dtype=float) * np.asarray(tokens, dtype=float)
    return np.asarray(product + 0 * np.asarray(third, dtype=float))
