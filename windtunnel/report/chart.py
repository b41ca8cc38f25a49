"""The data of the page's main chart: plain numbers that ``chart.js`` draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.plots_evidence import Evidence, Promoted, surface_of
from analysis.plots_loss import use_of
from analysis.plots_style import SIZES
from analysis.results import Prediction
from analysis.study import Study

SIZE_WORDS = {
    "flops_per_token": "FLOPs per token",
    "active_params": "active parameters",
    "active_non_embedding_params": "active, non-embedding parameters",
    "total_params": "total parameters",
}


def chart_data(evidence: Evidence) -> dict[str, Any]:
    """Runs, law with band, rung lines and the forecast, for each way to count size."""
    sizes = {record.rung: record.flops_per_token for record in evidence.done}
    return {
        "rungs": [
            {"name": rung, "color": _color_name(color), "flops_per_token": sizes[rung]}
            for rung, color in evidence.colors.items()
        ],
        "views": [_view(evidence, evidence.study)],
    }


def _view(evidence: Evidence, study: Study | None) -> dict[str, Any]:
    variable = study.points.size_variable if study else "flops_per_token"
    return {
        "key": variable,
        "name": SIZE_WORDS.get(variable, variable),
        "size_name": SIZE_WORDS.get(variable, variable),
        "axis": "Training compute, FLOPs",
        "points": _points(evidence, study),
        "law": _law(evidence, study) if study else None,
        "lines": _lines(evidence, study) if study else [],
        "promoted": _promoted(evidence.promoted) if evidence.promoted else None,
    }


def _points(evidence: Evidence, study: Study | None) -> list[dict[str, Any]]:
    held: dict[str, Prediction] = {}
    size: dict[str, float] = {}
    if study is not None:
        size = dict(zip(study.points.label, study.points.size, strict=True))
    if evidence.holdout is not None:
        held = {point.label: point.forecast for point in evidence.holdout.points}
    points = []
    for record in evidence.done:
        forecast = held.get(record.run_id)
        excluded = record.run_id in evidence.excluded
        points.append(
            {
                "id": record.run_id,
                "rung": record.rung,
                "color": _color_name(evidence.colors[record.rung]),
                "flops": record.train_flops,
                "tokens": record.tokens,
                "size": size.get(record.run_id, record.flops_per_token),
                "loss": record.loss_nats,
                "low": forecast.low if forecast else None,
                "high": forecast.high if forecast else None,
                "use": "excluded" if excluded else "held" if forecast else "fitted",
                "note": use_of(record, evidence),
            }
        )
    return points


def _law(evidence: Evidence, study: Study) -> dict[str, Any]:
    surface = surface_of(study)
    flops = [record.train_flops for record in evidence.done]
    far = max(*flops, evidence.promoted.flops if evidence.promoted else 0.0) * 1.15
    grid = np.unique(np.append(np.geomspace(min(flops), far, 80), max(flops)))
    best = [surface.optimum(float(c)) for c in grid]
    value, low, high = study.surface.predict_many(
        np.array([b.size for b in best]), np.array([b.tokens for b in best])
    )
    return {
        "flops": _short(grid),
        "loss": _short(value),
        "low": _short(low),
        "high": _short(high),
        "measured_to": max(flops),
    }


def _lines(evidence: Evidence, study: Study) -> list[dict[str, Any]]:
    surface = surface_of(study)
    size = dict(zip(study.points.label, study.points.size, strict=True))
    lines = []
    for rung, color in evidence.colors.items():
        runs = [r for r in evidence.done if r.rung == rung and r.run_id in size]
        if len({r.tokens for r in runs}) < 2:
            continue
        tokens = np.geomspace(min(r.tokens for r in runs), max(r.tokens for r in runs), 24)
        lines.append(
            {
                "rung": rung,
                "color": _color_name(color),
                "flops": _short(tokens * runs[0].flops_per_token),
                "loss": _short(surface(size[runs[0].run_id], tokens)),
            }
        )
    return lines


def _promoted(promoted: Promoted) -> dict[str, Any]:
    return {
        "id": promoted.label,
        "flops": promoted.flops,
        "tokens": promoted.tokens,
        "size": promoted.size,
        "loss": promoted.forecast.value,
        "low": promoted.forecast.low,
        "high": promoted.forecast.high,
        "measured": promoted.measured,
        "note": f"{promoted.forecast.extrapolation_ratio:.3g} times the largest run's compute",
    }


def _color_name(color: str) -> str:
    return f"size-{SIZES.index(color)}"


def _short(values: Any) -> list[float]:
    """Seven digits: far below a pixel, and half the bytes."""
    return [float(f"{value:.7g}") for value in np.asarray(values, dtype=float)]
