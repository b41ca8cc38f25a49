"""The same runs fitted with size counted in other ways, by the settings of the sweep's own fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from analysis.fitting import fit_surface, frontier_fit
from analysis.plots_evidence import Evidence
from analysis.points import Points, SizeVariable, points_from_records
from analysis.records import RecordSet
from analysis.results import Fit, FitError

SIZE_WORDS = {
    "flops_per_token": "FLOPs per token",
    "active_params": "active parameters",
    "active_non_embedding_params": "active, without embedding",
    "total_params": "total parameters",
}


@dataclass(frozen=True, kw_only=True)
class View:
    """A law in one way to count size; ``windtunnel fit size=KEY`` gives the same numbers."""

    key: str
    name: str
    points: Points
    surface: Fit
    compute_law: Fit


def views_of(evidence: Evidence) -> tuple[View, ...]:
    """The study's own view first, then the others that can be fitted; none without a study."""
    study = evidence.study
    if study is None:
        return ()
    own = study.points.size_variable
    views = [
        View(
            key=own,
            name=SIZE_WORDS.get(own, own),
            points=study.points,
            surface=study.surface,
            compute_law=study.compute_law,
        )
    ]
    by_id = {record.run_id: record for record in evidence.records}
    used = tuple(by_id[label] for label in study.points.label if label in by_id)
    if len(used) < len(study.points):
        return tuple(views)  # fitted runs are gone from disk: only the kept fit can be shown
    for key in get_args(SizeVariable):
        if key == own:
            continue
        points, _ = points_from_records(RecordSet(records=used, excluded=()), key)
        try:
            surface = fit_surface(points, study.settings)
        except FitError:
            continue
        views.append(
            View(
                key=key,
                name=SIZE_WORDS[key],
                points=points,
                surface=surface,
                compute_law=frontier_fit(surface, study.settings.level),
            )
        )
    return tuple(views)
