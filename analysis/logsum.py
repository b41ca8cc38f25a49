"""One form for every law here: the log of a sum of terms whose logs are linear in the parameters.

    log f(x_n) = log sum_k exp(G_k[n] · theta[columns_k])

E + A/N^alpha + B/D^beta has three of them: log E; log A - alpha·log N; log B - beta·log D. A
power law is one term, the joint MoE laws are three to five. Value, gradient and Hessian follow
once for all, for a whole batch of problems (starts, bootstrap replicates) at a time.

Shapes: B problems, N points, P parameters, K terms, W columns of one term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array

BLOCK_ELEMENTS = 16_384
"""Points times problems worked on at once: a dozen arrays of this size stay in an L2 cache."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """rho of a log-residual: r²/2 up to ``delta``, then delta·(|r| - delta/2) (Huber).

    ``squares`` is delta = infinity. ``lad`` is reached as the limit of small deltas.
    """

    kind: Literal["huber", "lad", "squares"]
    delta: float

    def rho(self, residual_BN: Array) -> Array:
        """The loss of each residual."""
        size_BN = np.abs(residual_BN)
        inner_BN = np.minimum(size_BN, self.delta)
        return np.asarray(inner_BN * (size_BN - 0.5 * inner_BN))

    def slope(self, residual_BN: Array) -> Array:
        """First derivative of rho."""
        return np.clip(residual_BN, -self.delta, self.delta)


@dataclass(frozen=True)
class LogSum:
    """The terms of one law at one set of points."""

    terms: tuple[Array, ...]
    """K matrices [N, W_k]; the first column of each multiplies the term's log coefficient."""
    columns: tuple[tuple[int, ...], ...]
    """Which parameters each term's columns multiply."""
    lower_P: Array
    upper_P: Array

    @property
    def num_parameters(self) -> int:
        """P."""
        return len(self.lower_P)

    @property
    def num_points(self) -> int:
        """N."""
        return len(self.terms[0])

    def take(self, rows: NDArray[np.intp]) -> LogSum:
        """The same law at some of the points."""
        terms = tuple(term[rows] for term in self.terms)
        return LogSum(terms, self.columns, self.lower_P, self.upper_P)

    @cached_property
    def products(self) -> dict[tuple[int, int], Array]:
        """Outer products of the terms' rows, [N, W_k·W_l] for k <= l: sums of them are Hessians."""
        return {
            (k, other): np.ascontiguousarray(
                (self.terms[k][:, :, None] * self.terms[other][:, None, :]).reshape(
                    self.num_points, -1
                )
            )
            for k in range(len(self.terms))
            for other in range(k, len(self.terms))
        }

    def log_values(self, theta_BP: Array) -> Array:
        """log f, [B, N]."""
        return self.shares(theta_BP)[0]

    def shares(self, theta_BP: Array) -> tuple[Array, list[Array]]:
        """log f [B, N], and each term's share of f, K arrays [B, N]."""
        logs = [
            theta_BP[:, list(columns)] @ term.T
            for term, columns in zip(self.terms, self.columns, strict=True)
        ]
        highest_BN = logs[0] if len(logs) == 1 else np.maximum.reduce(logs)
        shares = [np.exp(log_BN - highest_BN) for log_BN in logs]
        total_BN = sum(shares[1:], start=shares[0].copy())
        for share_BN in shares:
            share_BN /= total_BN
        return highest_BN + np.log(total_BN), shares

    def gradient(self, shares: Sequence[Array], weight_BN: Array) -> Array:
        """sum_n weight · d log f / d theta, [B, P]."""
        gradient_BP = np.zeros((len(weight_BN), self.num_parameters))
        for share_BN, term, columns in zip(shares, self.terms, self.columns, strict=True):
            gradient_BP[:, list(columns)] += (weight_BN * share_BN) @ term
        return gradient_BP

    def curvature(self, shares: Sequence[Array], outer_BN: Array, own_BN: Array | None) -> Array:
        """sum_n outer · J Jᵀ - own · Hessian(log f), [B, P, P], where J = d log f / d theta.

        The Hessian of log f is sum_k share_k·G_k G_kᵀ - J Jᵀ, and J = sum_k share_k·G_k, so both
        parts are weighted sums of the same outer products.
        """
        num_parameters = self.num_parameters
        curvature_BPP = np.zeros((len(outer_BN), num_parameters, num_parameters))
        both_BN = outer_BN if own_BN is None else outer_BN + own_BN
        for k, columns in enumerate(self.columns):
            weighted_BN = both_BN * shares[k]
            for other in range(k, len(self.columns)):
                weight_BN = weighted_BN * shares[other]
                if other == k and own_BN is not None:
                    weight_BN -= own_BN * shares[k]
                block_BWW = (weight_BN @ self.products[k, other]).reshape(
                    len(outer_BN), len(columns), -1
                )
                rows, cols = np.array(columns), np.array(self.columns[other])
                curvature_BPP[:, rows[:, None], cols] += block_BWW
                if other != k:
                    curvature_BPP[:, cols[:, None], rows] += block_BWW.transpose(0, 2, 1)
        return curvature_BPP

    def jacobian(self, theta_P: Array) -> Array:
        """d log f / d theta at one parameter vector, [N, P]."""
        _, shares = self.shares(theta_P[None])
        jacobian_NP = np.zeros((self.num_points, self.num_parameters))
        for share_BN, term, columns in zip(shares, self.terms, self.columns, strict=True):
            jacobian_NP[:, list(columns)] += share_BN[0][:, None] * term
        return jacobian_NP
