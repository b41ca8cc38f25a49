"""Forecasts at places the caller names, and of rows the caller keeps from the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.catalogue import AnyLaw, the_law
from analysis.holdout import HeldOutPoint
from analysis.points import FLOPS_PER_PARAM_TOKEN, Points
from analysis.results import Fit, Prediction
from model.errors import ConfigError

OTHER_NAMES = {"params": "size", "N": "size", "D": "tokens", "C": "flops"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A forecast somewhere."""

    at: dict[str, float]
    """The law's variables there."""
    forecast: Prediction

    @property
    def place(self) -> str:
        """The variables in words."""
        return ", ".join(f"{name} {value:.4g}" for name, value in self.at.items())


def forecast_at(fit: Fit, points: Points, at: Mapping[str, float], level: float) -> Asked:
    """The law at a place of the caller's, with its interval.

    Args:
        fit: the law.
        points: as fitted; they say what C is over N·D.
        at: the law's variables, or of size, tokens and flops two from which they follow.
        level: of the interval.

    Raises:
        ConfigError: a variable is missing, unknown or not positive.
    """
    place = place_at(type(fit.law), points, at)
    return Asked(at=place, forecast=fit.predict(*place.values(), level=level))


def place_at(law: type[AnyLaw], points: Points, at: Mapping[str, float]) -> dict[str, float]:
    """The law's variables at a place of the caller's; arguments and errors as of
    :func:`forecast_at`."""
    known = everything_at(law, points, at)
    for name in law.VARIABLES:
        if name not in known:
            raise ConfigError(f"at.{name}: missing; {the_law(law)} needs {_variables(law)}")
    return {name: known[name] for name in law.VARIABLES}


def everything_at(law: type[AnyLaw], points: Points, at: Mapping[str, float]) -> dict[str, float]:
    """All that is known of a place: what the caller gives, and what follows of the law's variables,
    size, tokens and flops.

    Raises:
        ConfigError: a variable is unknown or not positive.
    """
    return everything_named(law.VARIABLES, the_law(law), points, at)


def everything_named(
    variables: Sequence[str], law: str, points: Points, at: Mapping[str, float]
) -> dict[str, float]:
    """The same where a law is known by its variables and by what messages call it."""
    known = {OTHER_NAMES.get(name, name): float(value) for name, value in at.items()}
    for name, value in known.items():
        if not value > 0:
            raise ConfigError(f"at.{name} must be positive, got {value:g}")
    allowed = {*variables, "size", "tokens", "flops"}
    for name in known:
        if name not in allowed:
            raise ConfigError(f"at.{name}: not a variable of {law}: {', '.join(variables)}")
    pair = _flops_per_size_token(points)
    if "flops" not in known and {"size", "tokens"} <= set(known):
        known["flops"] = pair * known["size"] * known["tokens"]
    if "tokens" not in known and {"size", "flops"} <= set(known):
        known["tokens"] = known["flops"] / (pair * known["size"])
    if "size" not in known and {"tokens", "flops"} <= set(known):
        known["size"] = known["flops"] / (pair * known["tokens"])
    if {"size", "tokens"} <= set(known):
        known["tokens_per_size"] = known["tokens"] / known["size"]
    return known


def forecast_rows(fit: Fit, rows: Points, level: float) -> tuple[HeldOutPoint, ...]:
    """Every row forecast, beside what was measured there."""
    law = type(fit.law)
    columns = [rows.column(name, the_law(law)) for name in law.VARIABLES]

    def own(name: str, row: int) -> float:
        column: tuple[float, ...] = getattr(rows, name)
        return column[row] if column else 0.0

    return tuple(
        HeldOutPoint(
            label=rows.label[row],
            size=own("size", row),
            tokens=own("tokens", row),
            flops=own("flops", row),
            measured=rows.loss[row],
            forecast=fit.predict(*(float(column[row]) for column in columns), level=level),
        )
        for row in range(len(rows))
    )


def _flops_per_size_token(points: Points) -> float:
    if not (points.size and points.tokens):
        return FLOPS_PER_PARAM_TOKEN
    return float(np.median(points.array("flops") / (points.array("size") * points.array("tokens"))))


def _variables(law: type[AnyLaw]) -> str:
    return ", ".join(law.VARIABLES)
