"""The data of the page's main chart: plain numbers that ``chart.js`` draws and refits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.laws import LossSurface
from analysis.plots_evidence import Evidence, Promoted
from analysis.plots_loss import use_of
from analysis.plots_style import SIZES
from analysis.records import RunRecord
from analysis.results import Fit, Prediction
from windtunnel.report.conventions import CONVENTIONS, View

MOST_MARKS = 1500
"""More dots than this overlap; of the rest only what a refit needs is sent."""
MOST_OUTLIERS = 150
"""Of those dots, the ones that lie furthest from the law: no thinning may hide them."""


def chart_data(evidence: Evidence, views: Sequence[View]) -> dict[str, Any]:
    """Runs once, and for each way to count size the law with its band, rung lines and forecast."""
    sizes = {record.rung: record.flops_per_token for record in evidence.done}
    drawn: list[View | None] = [*views] or [None]
    marked, rest = _thinned(evidence)
    shared = _Sizes(views)
    points, undrawn = _points(evidence, shared, marked), _rest(evidence, shared, rest)
    return {
        "rungs": [
            {"name": rung, "color": _color_name(color), "flops_per_token": sizes[rung]}
            for rung, color in evidence.colors.items()
        ],
        "sizes": shared.entries,
        "points": points,
        "rest": undrawn,
        "views": [_view(evidence, view, is_own=i == 0) for i, view in enumerate(drawn)],
    }


def _view(evidence: Evidence, view: View | None, *, is_own: bool) -> dict[str, Any]:
    key = view.key if view else "flops_per_token"
    convention = view.convention if view else CONVENTIONS["flops_per_token"]
    size = dict(zip(view.points.label, view.points.size, strict=True)) if view else {}
    promoted = evidence.promoted
    return {
        "key": key,
        "name": convention.name,
        "counted": convention.counted,
        "attention": convention.attention,
        "law": _law(evidence, view.surface) if view else None,
        "fit": _fit(view.surface) if view else None,
        "lines": _lines(evidence, view.surface, size) if view else [],
        "promoted": _promoted(promoted, view, is_own=is_own) if promoted else None,
    }


def _thinned(evidence: Evidence) -> tuple[list[RunRecord], list[RunRecord]]:
    """Runs to draw, and the others: evenly along compute, and those furthest from the law."""
    done = evidence.done
    if len(done) <= MOST_MARKS:
        return list(done), []
    outliers = _furthest(evidence)
    even = np.linspace(0, len(done) - 1, MOST_MARKS - len(outliers)).astype(int)
    chosen = {*even.tolist(), *outliers}
    marked = [record for index, record in enumerate(done) if index in chosen]
    rest = [record for index, record in enumerate(done) if index not in chosen]
    return marked, rest


def _furthest(evidence: Evidence) -> list[int]:
    """Of ``evidence.done``, those whose loss the law misses most."""
    study = evidence.study
    if study is None:
        return []
    points, law = study.points, _surface(study.surface)
    residual = np.log(points.array("loss")) - np.log(
        law(points.array("size"), points.array("tokens"))
    )
    furthest = np.argsort(-np.abs(residual))[:MOST_OUTLIERS]
    labels = {points.label[row] for row in furthest}
    return [index for index, record in enumerate(evidence.done) if record.run_id in labels]


class _Sizes:
    """A run's size in every view; runs of one size share an entry, which is sent once."""

    def __init__(self, views: Sequence[View]) -> None:
        self.entries: list[dict[str, float]] = []
        self._by_label: dict[str, dict[str, float]] = {}
        for view in views:
            for label, size in zip(view.points.label, view.points.size, strict=True):
                self._by_label.setdefault(label, {})[view.key] = size
        self._index: dict[tuple[float, ...], int] = {}

    def of(self, record: RunRecord) -> int:
        """The place of its entry."""
        unfitted = {"flops_per_token": record.flops_per_token}
        sizes = self._by_label.get(record.run_id, unfitted)
        key = tuple(sizes.values())
        if key not in self._index:
            self._index[key] = len(self.entries)
            self.entries.append(sizes)
        return self._index[key]


def _rest(evidence: Evidence, sizes: _Sizes, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Fitted runs that are not drawn: those of one rung, size and token count share a cell."""
    rungs = {rung: index for index, rung in enumerate(evidence.rungs)}
    cells: dict[tuple[int, int, int], list[float]] = {}
    for record in records:
        if record.run_id in evidence.fitted:
            cell = (rungs[record.rung], sizes.of(record), record.tokens)
            cells.setdefault(cell, []).append(record.heldout_nats)
    return {
        "runs": len(records),
        "cells": [
            {"rung": rung, "sizes": place, "tokens": tokens, "losses": _short(losses)}
            for (rung, place, tokens), losses in cells.items()
        ],
    }


def _points(
    evidence: Evidence, sizes: _Sizes, records: Sequence[RunRecord]
) -> list[dict[str, Any]]:
    """``fitted`` runs enter a refit, held-out ones too: their intervals are the check's."""
    held: dict[str, Prediction] = {}
    if evidence.holdout is not None:
        held = {point.label: point.forecast for point in evidence.holdout.points}
    points = []
    for record in records:
        forecast = held.get(record.run_id)
        points.append(
            {
                "id": record.run_id,
                "rung": record.rung,
                "color": _color_name(evidence.colors[record.rung]),
                "flops": record.train_flops,
                "tokens": record.tokens,
                "sizes": sizes.of(record),
                "loss": record.heldout_nats,
                "low": forecast.low if forecast else None,
                "high": forecast.high if forecast else None,
                "fitted": record.run_id in evidence.fitted,
                "excluded": record.run_id in evidence.excluded,
                "other": evidence.is_of_other_variant(record.run_id),
                "note": use_of(record, evidence),
            }
        )
    return points


def _surface(fit: Fit) -> LossSurface:
    assert isinstance(fit.law, LossSurface)
    return fit.law


def _fit(fit: Fit) -> dict[str, Any]:
    """What a refit starts from and makes small."""
    law = _surface(fit)
    return {
        "parameters": dict(zip(law.PARAMETERS, map(float, law.parameters), strict=True)),
        "flops_per_size_token": law.flops_per_size_token,
        "loss": fit.objective.loss,
        "delta": fit.objective.delta,
        "seeds_share": fit.weighting.seeds_share if fit.weighting else 1.0,
    }


def _law(evidence: Evidence, fit: Fit) -> dict[str, Any] | None:
    """The law along the optimum, with its band; None where it has no optimum."""
    surface, level = _surface(fit), next(iter(fit.coefficients.values())).level
    if not surface.has_optimum:
        return None
    flops = [record.train_flops for record in evidence.done]
    far = max(*flops, evidence.promoted.flops if evidence.promoted else 0.0) * 1.15
    grid = np.unique(np.append(np.geomspace(min(flops), far, 80), max(flops)))
    best = [surface.optimum(float(c)) for c in grid]
    value, low, high = fit.predict_many(
        np.array([b.size for b in best]), np.array([b.tokens for b in best]), level=level
    )
    return {
        "flops": _short(grid),
        "loss": _short(value),
        "low": _short(low),
        "high": _short(high),
        "measured_to": max(flops),
    }


def _lines(evidence: Evidence, fit: Fit, size: dict[str, float]) -> list[dict[str, Any]]:
    surface = _surface(fit)
    lines = []
    for rung, color in evidence.colors.items():
        runs = [record for record in evidence.done if record.rung == rung]
        runs = [record for record in runs if record.run_id in size]
        if len({record.tokens for record in runs}) < 2:
            continue
        ends = min(r.tokens for r in runs), max(r.tokens for r in runs)
        tokens = np.geomspace(*ends, 24)
        lines.append(
            {
                "rung": rung,
                "color": _color_name(color),
                "flops": _short(tokens * runs[0].flops_per_token),
                "loss": _short(surface(size[runs[0].run_id], tokens)),
            }
        )
    return lines


def _promoted(promoted: Promoted, view: View | None, *, is_own: bool) -> dict[str, Any]:
    """The registered forecast; in another convention what that one would have forecast."""
    forecast, key = promoted.forecast, view.key if view else "flops_per_token"
    size = promoted.sizes[key]
    if view is not None and not is_own:
        forecast = view.surface.predict(size, promoted.tokens, level=forecast.level)
    return {
        "id": promoted.label,
        "flops": promoted.flops,
        "tokens": promoted.tokens,
        "size": size,
        "loss": forecast.value,
        "low": forecast.low,
        "high": forecast.high,
        "measured": promoted.measured,
        "note": f"{forecast.extrapolation_ratio:.3g} times the largest run's compute"
        + ("" if is_own else "; not the registered forecast"),
    }


def _color_name(color: str) -> str:
    return f"size-{SIZES.index(color)}"


def _short(values: Any) -> list[float]:
    """Seven digits: far below a pixel, and half the bytes."""
    return [float(f"{value:.7g}") for value in np.asarray(values, dtype=float)]
