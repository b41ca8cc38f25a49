"""Optima of grids: the best size of each budget, or the best learning rate of each cell.

The bundle of ``windtunnel fit law=isoflop`` and ``law=learning_rate``, kept as ``fit.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from analysis.edge_cells import edge_warnings
from analysis.exclusion import Exclusion
from analysis.hyperparam_laws import PlaneFit, against_compute, against_size_and_tokens
from analysis.hyperparams import CellOptimum, Setting, cell_optima
from analysis.isoflop import IsoflopOptimum, isoflop_laws, isoflop_loss, isoflop_optima
from analysis.kept import SCHEMA_VERSION, Kept, software_versions
from analysis.optima_asked import (
    AGAINST_C,
    AGAINST_ND,
    LOSS,
    isoflop_forecasts,
    path_warnings,
    setting_forecasts,
)
from analysis.points import Points
from analysis.results import Fit, FitError, Prediction
from analysis.settings import FitSettings

Procedure = Literal["isoflop", "learning_rate"]
PROCEDURES = ("isoflop", "learning_rate")


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
    """Where the caller asked."""
    notes: tuple[str, ...] = ()
    """Laws that could not be fitted, and why."""
    warnings: tuple[str, ...] = ()
    """Laws that mislead, and why."""
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
        at: flops, where the laws are to forecast; of learning rates also params and tokens.
        source: where the points came from.

    Raises:
        ConfigError: a column is missing, or ``at`` names something else.
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
        cells = cell_optima(points)
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
            notes.append(f"{what}: {str(error).removeprefix(f'{what.split()[0]}: ')}")
            continue
        if isinstance(found, PlaneFit):
            planes[what] = found
        else:
            fits[what] = found
    if procedure == "isoflop":
        forecasts = isoflop_forecasts(fits, at or {}, settings)
    else:
        forecasts = setting_forecasts(fits, planes, at or {}, points, settings)
    warnings = path_warnings(planes, settings.level)
    warnings += edge_warnings(cells, fits, planes, settings.level)
    return OptimaStudy(
        name=name,
        law_name=procedure,
        points=points,
        exclusions=exclusions,
        budgets=budgets,
        # The bowls are left out: they follow from the runs, which are kept.
        cells=tuple(replace(cell, bowl=None) for cell in cells),
        fits=fits,
        planes=planes,
        forecasts=forecasts,
        notes=tuple(notes),
        warnings=warnings,
        settings=settings,
        source=source or {},
        software=software_versions(),
    )


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
    has_batch = len(set(points.extra.get("batch_tokens", ()))) > 1
    varied: list[Setting] = ["peak_lr", "batch_tokens"] if has_batch else ["peak_lr"]
    tries: Tries = []
    for setting in varied:
        tries += [
            (f"{setting} {AGAINST_C}", partial(against_compute, cells, setting, free)),
            (
                f"{setting} {AGAINST_ND}",
                partial(against_size_and_tokens, cells, setting, settings.level),
            ),
        ]
    return tries


def _without_held(settings: FitSettings) -> FitSettings:
    return replace(settings, held={})
