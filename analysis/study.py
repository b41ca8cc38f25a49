"""The bundle a fit is kept as: laws, evidence, exclusions, noise, hold-out. ``fit.json``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from analysis import health
from analysis.asked import Asked
from analysis.exclusion import Exclusion
from analysis.fitting import fit_compute_law, fit_surface, frontier_fit
from analysis.holdout import HeldOutPoint, Holdout, drift_of
from analysis.judging import Comparison, hold_out
from analysis.kept import SCHEMA_VERSION, Kept, mapping_in, software_versions
from analysis.laws import LossSurface
from analysis.noise import NoiseFloor, noise_floor
from analysis.points import Points
from analysis.results import Fit, FitStatus
from analysis.sensitivity import Sensitivity
from analysis.settings import FitSettings
from analysis.utilisation import UtilisationLaw
from model.errors import ConfigError

ONE_BUDGET = 1.5
"""Computes within this factor are one budget."""


@dataclass(frozen=True, kw_only=True)
class Study(Kept):
    """Everything a paper must state about its fit (arXiv:2502.18969), and what predicts from it."""

    schema_version: int = SCHEMA_VERSION
    name: str
    """The sweep, or the table's path."""
    points: Points
    exclusions: tuple[Exclusion, ...]
    protocol: dict[str, Any]
    """What all runs share; empty for a table."""
    protocol_fingerprints: tuple[str, ...]
    convention: str
    """Version of the FLOP and parameter counting convention; empty for a table."""
    surface: Fit
    """L(N, D); its law is a LossSurface."""
    compute_law: Fit
    """L(C) along the compute-optimal frontier; its law is a SaturatingPowerLaw."""
    noise: NoiseFloor | None
    holdouts: tuple[Holdout, ...]
    """One entry per number of budgets left out, fewest first."""
    settings: FitSettings
    comparison: Comparison | None = None
    """Laws by their hold-out error; None where nobody asked."""
    sensitivity: Sensitivity | None = None
    """What other defensible choices would have recommended; None where nobody asked."""
    utilisation: tuple[UtilisationLaw, ...] = ()
    """How the experts are used, against compute; empty for a table."""
    tests: tuple[HeldOutPoint, ...] = ()
    """Rows that were forecast and not fitted, because the caller asked."""
    forecasts: tuple[Asked, ...] = ()
    """Forecasts where the caller asked for them."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where the points came from: files, columns, rules."""
    software: dict[str, str] = field(default_factory=dict)
    """Versions the fit was made with."""

    @classmethod
    def from_json(cls, text: str, *, where: str = "fit.json") -> Self:
        """The study written by :meth:`to_json`."""
        mapping = mapping_in(text, where)
        kind = mapping.get("kind") if isinstance(mapping, dict) else None
        if kind is not None:
            raise ConfigError(
                f"{where}: holds a fit of {mapping.get('law_name', kind)}; here the law of size "
                "and tokens is needed: run `windtunnel fit` with law=hoffmann"
            )
        return super().from_json(text, where=where)

    @staticmethod
    def load(path: Path) -> Study:
        """Read ``fit.json``."""
        if not path.exists():
            raise ConfigError(f"{path}: no such file; run `windtunnel fit` first")
        return Study.from_json(path.read_text(encoding="utf-8"), where=str(path))

    def summary(self, *, flops: float | None = None) -> str:
        """One screen of at most 100 columns; the optimum at ``flops``, or at ten times the largest
        run's compute."""
        from analysis.summary import summarise

        return summarise(self, flops)


def make_study(
    name: str,
    points: Points,
    exclusions: tuple[Exclusion, ...],
    settings: FitSettings,
    *,
    protocol: dict[str, Any] | None = None,
    protocol_fingerprints: tuple[str, ...] = (),
    convention: str = "",
    source: dict[str, Any] | None = None,
) -> Study:
    """Fit the surface, derive the frontier, hold the largest budgets out.

    Raises:
        ConfigError: points of one budget, one size or one token count.
        FitError: too few points.
    """
    check_spread(points)
    surface = fit_surface(points, settings)
    holdouts = hold_out(points, settings)
    surface = replace(
        surface,
        warnings=(*surface.warnings, *health.holdout_warnings(holdouts)),
        drift=drift_of(holdouts, curved=FitStatus.CURVED in surface.statuses()),
    )
    return Study(
        name=name,
        points=points,
        exclusions=exclusions,
        protocol=protocol or {},
        protocol_fingerprints=protocol_fingerprints,
        convention=convention,
        surface=surface,
        compute_law=compute_law(points, surface, settings),
        noise=noise_floor(points),
        holdouts=holdouts,
        settings=settings,
        source=source or {},
        software=software_versions(),
    )


def compute_law(points: Points, surface: Fit, settings: FitSettings) -> Fit:
    """L(C) along the surface's frontier, or where it has none through each budget's best run."""
    law = surface.law
    assert isinstance(law, LossSurface)
    if law.has_optimum:
        return frontier_fit(surface, settings.level)
    return fit_compute_law(points, settings)


def check_spread(points: Points) -> None:
    """A surface needs more than one budget, size and token count.

    Raises:
        ConfigError: naming what there is only one of.
    """
    flops = points.array("flops")
    if flops.max() / flops.min() < ONE_BUDGET:
        raise ConfigError(
            f"one budget only: all {len(points)} runs used {flops.min():.3g} to {flops.max():.3g} "
            "FLOPs. A law needs runs of several budgets, three or more; widen the ladder. The best "
            "size of one budget is found by law=isoflop"
        )
    for what, column in (("size", points.size), ("token count", points.tokens)):
        if len(set(column)) < 2:
            raise ConfigError(
                f"one {what} only: all {len(points)} runs have {column[0]:.4g}. Its exponent can't "
                f"be told from the irreducible loss; add runs of another {what}"
            )
