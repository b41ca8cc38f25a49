"""Optima of grids: the best size of each budget, or the best learning rate of each cell.

The bundle of ``windtunnel fit law=isoflop`` and ``law=learning_rate``, kept as ``fit.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from analysis.exclusion import Exclusion
from analysis.hyperparams import (
    CellOptimum,
    PlaneFit,
    against_compute,
    against_size_and_tokens,
    cell_optima,
)
from analysis.isoflop import IsoflopOptimum, isoflop_laws, isoflop_loss, isoflop_optima
from analysis.kept import SCHEMA_VERSION, Kept, software_versions
from analysis.points import Points
from analysis.results import Fit, FitError, Prediction
from analysis.settings import FitSettings
from model.errors import ConfigError

Procedure = Literal["isoflop", "learning_rate"]
PROCEDURES = ("isoflop", "learning_rate")
LOSS = "loss at the minimum"


@dataclass(frozen=True, kw_only=True)
class OptimaStudy(Kept):
    """The optimum of each budget or cell with its status, and the laws through those that hold."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["optima"] = "optima"
    name: str
    law_name: Procedure
    points: Points
    exclusions: tuple[Exclusion, ...]
    budgets: tuple[IsoflopOptimum, ...] = ()
    cells: tuple[CellOptimum, ...] = ()
    fits: dict[str, Fit] = field(default_factory=dict)
    """Against compute, by what is predicted."""
    planes: dict[str, PlaneFit] = field(default_factory=dict)
    """Against size and tokens."""
    forecasts: dict[str, Prediction] = field(default_factory=dict)
    """Of the laws against compute, where the caller asked."""
    notes: tuple[str, ...] = ()
    """Laws that could not be fitted, and why."""
    settings: FitSettings
    source: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)


def make_optima_study(
    name: str,
    procedure: Procedure,
    points: Points,
    exclusions: tuple[Exclusion, ...],
    settings: FitSettings,
    *,
    at: Mapping[str, float] | None = None,
    source: dict[str, Any] | None = None,
) -> OptimaStudy:
    """Find the optima and fit what can be fitted through them.

    Args:
        name: the table's path.
        procedure: isoflop needs size, tokens and FLOPs; learning_rate also peak_lr, and
            batch_tokens where batches vary.
        points: the grid's runs.
        exclusions: what was left out before.
        settings: of the laws; ``held`` may name E, the irreducible loss of the isoflop minima.
        at: flops, where the laws against compute are to forecast.
        source: where the points came from.

    Raises:
        ConfigError: a column is missing, or ``at`` names something else than flops.
        FitError: not one optimum.
    """
    for column in ("size", "tokens", "flops"):
        points.column(column, f"law={procedure}")
    budgets: tuple[IsoflopOptimum, ...] = ()
    cells: tuple[CellOptimum, ...] = ()
    if procedure == "isoflop":
        budgets = isoflop_optima(points)
        tries = _isoflop_tries(points, budgets, settings)
    else:
        # The bowls are left out: they follow from the runs, which are kept.
        cells = tuple(replace(cell, bowl=None) for cell in cell_optima(points))
        tries = _cell_tries(points, cells, settings)
    if not (budgets or cells):
        raise FitError(
            f"{name}: no budget holds three sizes or more, so no parabola can be drawn; the runs "
            f"have {len(set(points.budget))} budgets. A surface needs none: law=hoffmann"
        )
    fits: dict[str, Fit] = {}
    planes: dict[str, PlaneFit] = {}
    notes = []
    for what, work in tries:
        try:
            found = work()
        except FitError as error:
            name = what.split(" ")[0]
            notes.append(f"{what}: {str(error).removeprefix(f'{name}: ')}")
            continue
        if isinstance(found, PlaneFit):
            planes[what] = found
        else:
            fits[what] = found
    return OptimaStudy(
        name=name,
        law_name=procedure,
        points=points,
        exclusions=exclusions,
        budgets=budgets,
        cells=cells,
        fits=fits,
        planes=planes,
        forecasts=_forecasts(fits, at or {}, settings),
        notes=tuple(notes),
        settings=settings,
        source=source or {},
        software=software_versions(),
    )


def _forecasts(
    fits: Mapping[str, Fit], at: Mapping[str, float], settings: FitSettings
) -> dict[str, Prediction]:
    for name, value in at.items():
        if name not in ("flops", "C") or not value > 0:
            raise ConfigError(f"at.{name}={value}: these laws are of the compute: at.flops=1e22")
    found = {}
    for flops in at.values():
        for what, fit in fits.items():
            forecast = fit.predict(float(flops), level=settings.level)
            if what == LOSS:
                irreducible = settings.held.get("E", 0.0)
                forecast = replace(
                    forecast,
                    value=forecast.value + irreducible,
                    low=forecast.low + irreducible,
                    high=forecast.high + irreducible,
                )
            found[what] = forecast
    return found


Tries = list[tuple[str, Callable[[], Fit | PlaneFit]]]


def _isoflop_tries(
    points: Points, budgets: tuple[IsoflopOptimum, ...], settings: FitSettings
) -> Tries:
    ratio = points.array("flops") / (points.array("size") * points.array("tokens"))
    pair = float(np.median(ratio))
    free = _without_held(settings)
    irreducible = settings.held.get("E", 0.0)
    return [
        ("N*, parabola", lambda: isoflop_laws(budgets, pair, free)[0]),
        ("D*, parabola", lambda: isoflop_laws(budgets, pair, free)[1]),
        ("N*, lowest run", lambda: isoflop_laws(budgets, pair, free, by="lowest_run")[0]),
        ("D*, lowest run", lambda: isoflop_laws(budgets, pair, free, by="lowest_run")[1]),
        (LOSS, lambda: isoflop_loss(budgets, irreducible, free)),
    ]


def _cell_tries(points: Points, cells: tuple[CellOptimum, ...], settings: FitSettings) -> Tries:
    free = _without_held(settings)
    tries: Tries = [
        ("peak_lr against C", lambda: against_compute(cells, "peak_lr", free)),
        (
            "peak_lr against N, D",
            lambda: against_size_and_tokens(cells, "peak_lr", settings.level),
        ),
    ]
    if len(set(points.extra.get("batch_tokens", ()))) > 1:
        tries += [
            ("batch_tokens against C", lambda: against_compute(cells, "batch_tokens", free)),
            (
                "batch_tokens against N, D",
                lambda: against_size_and_tokens(cells, "batch_tokens", settings.level),
            ),
        ]
    return tries


def _without_held(settings: FitSettings) -> FitSettings:
    return replace(settings, held={})
