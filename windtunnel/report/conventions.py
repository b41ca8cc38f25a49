"""The same runs fitted with size counted in other ways, by the settings of the sweep's own fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from analysis.fitting import fit_surface
from analysis.plots_evidence import Evidence
from analysis.points import Points, SizeVariable, points_from_records
from analysis.records import RecordSet
from analysis.results import Fit, FitError
from analysis.study import compute_law


class Convention(NamedTuple):
    """What counts as size: some of the parameters, with attention added to them or not."""

    name: str
    counted: str
    """Which parameters."""
    attention: bool


CONVENTIONS: dict[SizeVariable, Convention] = {
    "flops_per_token": Convention("FLOPs per token", "active, no embedding", True),
    "active_non_embedding_params": Convention(
        "active parameters, no embedding", "active, no embedding", False
    ),
    "active_params_with_attention": Convention("active parameters + attention", "active", True),
    "active_params": Convention("active parameters", "active", False),
    "total_params_with_attention": Convention("total parameters + attention", "total", True),
    "total_params": Convention("total parameters", "total", False),
}


@dataclass(frozen=True, kw_only=True)
class View:
    """A law in one way to count size; ``windtunnel fit size=KEY`` gives the same numbers."""

    key: str
    convention: Convention
    points: Points
    surface: Fit
    compute_law: Fit


def own_view(evidence: Evidence) -> View | None:
    """The study as it was fitted; None without one."""
    study = evidence.study
    if study is None:
        return None
    key = study.points.size_variable
    known = {str(name): convention for name, convention in CONVENTIONS.items()}
    return View(
        key=key,
        convention=known.get(key, Convention(key, key, False)),
        points=study.points,
        surface=study.surface,
        compute_law=study.compute_law,
    )


def views_of(evidence: Evidence) -> Iterator[View]:
    """The study's own view first, then the others that can be fitted; none without a study.

    Each is fitted when it is asked for: with the default settings and 10,000 runs in half a minute.
    """
    study, own = evidence.study, own_view(evidence)
    if study is None or own is None:
        return
    yield own
    by_id = {record.run_id: record for record in evidence.records}
    used = tuple(by_id[label] for label in study.points.label if label in by_id)
    if len(used) < len(study.points):
        return  # fitted runs are gone from disk: only the kept fit can be shown
    for key, convention in CONVENTIONS.items():
        if key == own.key:
            continue
        points, _ = points_from_records(RecordSet(records=used, excluded=()), key)
        try:
            surface = fit_surface(points, study.settings)
        except FitError:
            continue
        yield View(
            key=key,
            convention=convention,
            points=points,
            surface=surface,
            compute_law=compute_law(points, surface, study.settings),
        )
