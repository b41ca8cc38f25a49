"""A fit's answer to a script: the laws and forecasts of ``fit.json``, without points and draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.allocation import exponents, optimum
from analysis.asked import Asked
from analysis.holdout import HeldOutPoint, Holdout
from analysis.hyperparam_laws import PlaneFit
from analysis.hyperparams import CellOptimum
from analysis.isoflop import IsoflopOptimum
from analysis.law_study import LawStudy
from analysis.laws import LossSurface
from analysis.noise import NoiseFloor
from analysis.optima_study import OptimaStudy
from analysis.results import Fit, FitWarning
from analysis.study import Study
from analysis.summary import AHEAD


def fit_answer(
    study: Study | LawStudy | OptimaStudy,
    *,
    at_flops: float | None,
    written: Path,
    figures: Path | None,
    registered: str | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The same fields whatever was fitted; null or empty where a law has none.

    Args:
        study: what ``written`` holds.
        at_flops: where the optimum is wanted; null: ten times the largest compute.
        written: ``fit.json``.
        figures: their folder, if they were drawn.
        registered: name of the forecast in the ledger, if it was put there.
        notes: what the screen says besides.
    """
    of_law: dict[str, Any]
    if isinstance(study, Study):
        of_law = _of_surface(study, at_flops)
    elif isinstance(study, LawStudy):
        of_law = _of_law(study)
    else:
        of_law = _of_optima(study)
    return {
        "name": study.name,
        "size_variable": study.points.size_variable,
        "level": study.settings.level,
        "num_points": len(study.points),
        "num_left_out": len(study.exclusions),
        "law": None,
        "optimum": None,
        "holdouts": [],
        "tests": [],
        "noise_between_seeds": None,
        "cells": [],
        "planes": {},
        **of_law,
        "notes": [*of_law.get("notes", ()), *notes],
        "written": written,
        "figures": figures,
        "registered": registered,
    }


def _of_surface(study: Study, at_flops: float | None) -> dict[str, Any]:
    return {
        "law": "hoffmann",
        "fits": {"loss": _fit(study.surface), "loss_of_compute": _fit(study.compute_law)},
        "optimum": _optimum(study, at_flops),
        **_evidence(study.holdouts, study.tests, study.forecasts, study.noise),
    }


def _of_law(study: LawStudy) -> dict[str, Any]:
    return {
        "law": study.law_name,
        "fits": {"loss": _fit(study.fit)},
        **_evidence(study.holdouts, study.tests, study.forecasts, study.noise),
    }


def _of_optima(study: OptimaStudy) -> dict[str, Any]:
    return {
        "law": study.law_name,
        "fits": {what: _fit(fit) for what, fit in study.fits.items()},
        "planes": {what: _plane(plane) for what, plane in study.planes.items()},
        "cells": [*map(_budget, study.budgets), *map(_cell, study.cells)],
        "forecasts": [
            {"of": what, "at": {}, "forecast": found} for what, found in study.forecasts.items()
        ],
        "notes": [*study.warnings, *study.notes],
    }


def _fit(fit: Fit) -> dict[str, Any]:
    return {
        "coefficients": fit.coefficients,
        "noise_sd_log": fit.noise_sd,
        "num_points": fit.num_points,
        "largest_compute": fit.largest_compute,
        "ranges": {name: {"low": low, "high": high} for name, (low, high) in fit.ranges.items()},
        "warnings": _warnings(fit.warnings),
    }


def _budget(found: IsoflopOptimum) -> dict[str, Any]:
    """The best size of one budget."""
    return {
        "train_flops": found.flops,
        "size": found.size,
        "loss_nats": found.loss,
        "status": found.status,
        "num_runs": found.num_runs,
    }


def _cell(found: CellOptimum) -> dict[str, Any]:
    """The best learning rate of one size and token count, and the batch where it was varied."""
    low, high = found.lr_range
    return {
        "train_flops": found.flops,
        "size": found.size,
        "tokens": found.tokens,
        "peak_lr": found.peak_lr,
        "peak_lr_near_optimal": {"low": low, "high": high},
        "batch_tokens": found.batch_tokens if "batch_tokens" in found.varied else None,
        "loss_nats": found.loss,
        "status": found.status,
        "num_runs": found.num_runs,
    }


def _plane(plane: PlaneFit) -> dict[str, Any]:
    return {
        "coefficient": plane.coefficient,
        "size_exponent": plane.size_exponent,
        "token_exponent": plane.token_exponent,
        "noise_sd_log": plane.noise_sd,
        "num_points": plane.num_points,
    }


def _warnings(warnings: Sequence[FitWarning]) -> list[dict[str, str]]:
    return [{"status": one.status, "sentence": one.sentence} for one in warnings]


def _optimum(study: Study, at_flops: float | None) -> dict[str, Any] | None:
    law, level = study.surface.law, study.settings.level
    assert isinstance(law, LossSurface)
    if not (law.A > 0 and law.B > 0):
        return None
    best = optimum(study.surface, at_flops or AHEAD * study.surface.largest_compute, level)
    size_exponent, token_exponent = exponents(study.surface, level)
    return {
        "train_flops": best.flops,
        "size": best.size,
        "tokens": best.tokens,
        "loss_nats": best.loss,
        "size_exponent": size_exponent,
        "token_exponent": token_exponent,
    }


def _evidence(
    holdouts: Sequence[Holdout],
    tests: Sequence[HeldOutPoint],
    forecasts: Sequence[Asked],
    noise: NoiseFloor | None,
) -> dict[str, Any]:
    return {
        "forecasts": [
            {"of": "loss", "at": asked.at, "forecast": asked.forecast} for asked in forecasts
        ],
        "holdouts": [
            {
                "num_budgets": holdout.budgets,
                "num_points": len(holdout.points),
                "num_inside": holdout.num_inside,
                "mean_abs_error_frac": holdout.mean_abs_error,
            }
            for holdout in holdouts
        ],
        "tests": [
            {
                "label": point.label,
                "measured": point.measured,
                "forecast": point.forecast,
                "is_inside": point.inside,
            }
            for point in tests
        ],
        "noise_between_seeds": None
        if noise is None
        else {"sd_log_loss": noise.sd, "degrees_of_freedom": noise.degrees_of_freedom},
    }
