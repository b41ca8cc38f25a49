"""A law class made ready for the fitters: its terms at the points, its parameters there and back.

Logs of the variables are centred on the points, so that a coefficient's log is its term's log in
the middle of the data: without that, coefficient and exponent are almost the same direction and the
condition number is of order 1e11.

Shapes: B problems, N points, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.catalogue import Law, the_law
from analysis.laws import Array, Term
from analysis.logsum import LogSum
from analysis.projection import scatter
from model.errors import ConfigError

NOTHING = 1e-6
"""A term that is held at this share of the smallest loss is reported as a coefficient of zero."""
MOST = 1e15
"""A term is at most this many times the largest loss, in the middle of the data."""


@dataclass(frozen=True)
class Form:
    """One law class at one set of points."""

    law: type[Law]
    logsum: LogSum
    center_KP: Array
    """What centring took out of each term: mean factor by parameter."""
    held_P: NDArray[np.bool_]
    """Parameters that are held at a given value."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The law's parameters, in its order; theta is in the same order."""
        return self.law.PARAMETERS

    def decode(self, theta_BP: Array) -> Array:
        """The law's own parameters [B, P] from the fitters' theta [B, P]."""
        decoded_BP = theta_BP.copy()
        for columns, center_P in zip(self.logsum.columns, self.center_KP, strict=True):
            coefficient = columns[0]
            log_B = theta_BP[:, coefficient] - theta_BP @ center_P
            present_B = theta_BP[:, coefficient] > self.logsum.lower_P[coefficient]
            present_B |= self.held_P[coefficient]
            decoded_BP[:, coefficient] = np.where(present_B, np.exp(log_B), 0.0)
        return decoded_BP

    def encode(self, parameters_BP: Array) -> Array:
        """The inverse of :meth:`decode`."""
        theta_BP = np.array(parameters_BP, dtype=float)
        exponents_BP = theta_BP.copy()
        exponents_BP[:, [columns[0] for columns in self.logsum.columns]] = 0.0
        for columns, center_P in zip(self.logsum.columns, self.center_KP, strict=True):
            with np.errstate(divide="ignore"):
                log_B = np.log(theta_BP[:, columns[0]]) + exponents_BP @ center_P
            theta_BP[:, columns[0]] = np.maximum(log_B, self.logsum.lower_P[columns[0]])
        return theta_BP

    def exponent_starts(self, count: int) -> tuple[Array, Array]:
        """``count`` exponent vectors over the law's ranges [count, Q], and the same in [0, 1]."""
        ranges = np.array([self.law.EXPONENTS[name] for name in self.exponent_names])
        if len(ranges) == 0:
            return np.zeros((1, 0)), np.zeros((1, 0))
        unit = scatter(count, len(ranges))
        low, high = ranges.T
        positive = low > 0  # positive exponents are spread evenly in their log
        safe_low, safe_high = np.where(positive, low, 1.0), np.where(positive, high, 1.0)
        in_log = safe_low * (safe_high / safe_low) ** unit
        starts = np.where(positive, in_log, low + unit * (high - low))
        rows = [self.parameters.index(name) for name in self.exponent_names]
        return np.clip(starts, self.logsum.lower_P[rows], self.logsum.upper_P[rows]), unit

    @property
    def exponent_names(self) -> tuple[str, ...]:
        """The parameters that are no coefficient, in the law's order."""
        return tuple(name for name in self.parameters if name in self.law.EXPONENTS)


def make_form(
    law: type[Law],
    variables: Sequence[Array],
    values_N: Array,
    held: Mapping[str, float] | None = None,
) -> Form:
    """``law`` at the points ``variables`` (in its order), to be fitted to ``values_N``.

    Raises:
        ConfigError: ``held`` names a parameter that can't be held at a value.
    """
    names = list(law.PARAMETERS)
    log_values_N = np.log(values_N)
    terms, columns, centers = [], [], []
    law_terms: Callable[..., tuple[Term, ...]] = law.terms
    for term in law_terms(*variables):
        factors = [np.ones(len(values_N))]
        center_P = np.zeros(len(names))
        for name, factor_N in term.factors.items():
            mean = float(np.mean(factor_N))
            center_P[names.index(name)] = mean
            factors.append(factor_N - mean)
        terms.append(np.ascontiguousarray(np.stack(factors, axis=1)))
        columns.append((names.index(term.coefficient), *(names.index(n) for n in term.factors)))
        centers.append(center_P)
    lower, upper = np.empty(len(names)), np.empty(len(names))
    for index, name in enumerate(names):
        lower[index], upper[index] = law.EXPONENTS.get(
            name,
            (log_values_N.min() + np.log(NOTHING), log_values_N.max() + np.log(MOST)),
        )
    alone = {names[column[0]] for column in columns if len(column) == 1}
    for name, value in (held or {}).items():
        may = [n for n in names if n in law.EXPONENTS or n in alone]
        if name not in may:
            raise ConfigError(
                f"fit.held.{name}: {the_law(law)} can hold {', '.join(may)}; a coefficient that "
                "multiplies a power is left free"
            )
        index = names.index(name)
        at = value if name in law.EXPONENTS else np.log(max(value, 1e-300))
        at = at if name in law.EXPONENTS else max(at, lower[index])
        lower[index] = upper[index] = at
    return Form(
        law=law,
        logsum=LogSum(tuple(terms), tuple(columns), lower, upper),
        center_KP=np.stack(centers),
        held_P=np.array([name in (held or {}) for name in names]),
    )
