"""The bundle of a fit of any one law to any table: ``fit.json`` of ``windtunnel fit law=...``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from analysis import health
from analysis.asked import Asked, forecast_at, forecast_rows
from analysis.budgets import budget_ranks
from analysis.catalogue import LAWS, AnyLaw, the_law
from analysis.exclusion import Exclusion
from analysis.fitting import fit_points
from analysis.holdout import HeldOutPoint, Holdout, drift_of
from analysis.judging import Comparison, hold_out
from analysis.kept import SCHEMA_VERSION, Kept, software_versions
from analysis.laws import Array
from analysis.noise import NoiseFloor, noise_floor
from analysis.points import Points, celled_by
from analysis.results import Fit, FitStatus
from analysis.settings import FitSettings
from model.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LawStudy(Kept):
    """One law with its evidence; everything a paper must state about it (arXiv:2502.18969)."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["law"] = "law"
    name: str
    """The sweep, or the table's path."""
    law_name: str
    """As in ``law=``."""
    points: Points
    exclusions: tuple[Exclusion, ...]
    protocol: dict[str, Any] = field(default_factory=dict)
    """What all runs share; empty for a table."""
    fit: Fit
    noise: NoiseFloor | None
    holdouts: tuple[Holdout, ...]
    tests: tuple[HeldOutPoint, ...] = ()
    """Rows that were forecast and not fitted, because the caller asked."""
    forecasts: tuple[Asked, ...] = ()
    comparison: Comparison | None = None
    settings: FitSettings
    source: dict[str, Any] = field(default_factory=dict)
    """Where the points came from: files, columns, rules."""
    software: dict[str, str] = field(default_factory=dict)


def make_law_study(
    name: str,
    law_name: str,
    points: Points,
    exclusions: tuple[Exclusion, ...],
    settings: FitSettings,
    *,
    test: Points | None = None,
    at: Mapping[str, float] | None = None,
    protocol: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
) -> LawStudy:
    """Fit one law, hold the largest budgets out, forecast what was asked for.

    Args:
        name: the sweep, or the table's path.
        law_name: one of the catalogue's.
        points: runs with the law's variables.
        exclusions: what was left out before.
        settings: of the fit.
        test: rows to be forecast.
        at: a place to be forecast.
        protocol: what all runs share.
        source: where the points came from.

    Raises:
        ConfigError: no such law, a variable is missing or has one value only.
        FitError: too few points.
    """
    if law_name not in LAWS:
        raise ConfigError(f"law: no law {law_name!r}. There are: {', '.join(LAWS)}")
    law = LAWS[law_name]
    for variable in law.VARIABLES:
        column = points.column(variable, the_law(law))
        if len(set(column.tolist())) < 2:
            raise ConfigError(
                f"one {variable} only: all {len(points)} runs have {column[0]:.4g}, and "
                f"{the_law(law)} describes how the loss changes with it"
            )
    if not points.flops:
        points = replace(points, budget=budget_ranks(_compute(law, points)))
    points = celled_by(points, law.VARIABLES)
    fit = fit_points(law, points, settings)
    holdouts = hold_out(points, settings, law)
    fit = replace(
        fit,
        warnings=(*fit.warnings, *health.holdout_warnings(holdouts)),
        drift=drift_of(holdouts, curved=FitStatus.CURVED in fit.statuses()),
    )
    return LawStudy(
        name=name,
        law_name=law_name,
        points=points,
        exclusions=exclusions,
        protocol=protocol or {},
        fit=fit,
        noise=noise_floor(points),
        holdouts=holdouts,
        tests=forecast_rows(fit, test, settings.level) if test is not None else (),
        forecasts=(forecast_at(fit, points, at, settings.level),) if at else (),
        settings=settings,
        source=source or {},
        software=software_versions(),
    )


def _compute(law: type[AnyLaw], points: Points) -> Array:
    """What the law measures extrapolation in; it does not depend on the parameters."""
    any_law: Any = law(**dict.fromkeys(law.PARAMETERS, 1.0))  # type: ignore[arg-type]
    columns = [points.column(name, the_law(law)) for name in law.VARIABLES]
    return np.asarray(any_law.compute(*columns))
