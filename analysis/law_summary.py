"""A fit of one law on one screen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from textwrap import wrap

from analysis.data_laws import OverTrainingLaw
from analysis.law_study import LawStudy
from analysis.laws import PowerLaw
from analysis.leverage_law import LeverageLaw
from analysis.routed import RoutedLaw
from analysis.summary_lines import (
    coefficient_lines,
    comparison_lines,
    fit_lines,
    forecast_text,
    formula_of,
    holdout_lines,
    judged_lines,
    labelled,
    left_out_lines,
    num_points,
    untested,
    warning_lines,
)
from analysis.wording import WIDTH


def summarise_law(study: LawStudy) -> str:
    """The text of ``windtunnel fit law=...``, at most 100 columns wide."""
    return "\n".join(line.rstrip() for line in _lines(study)) + "\n"


def _lines(study: LawStudy) -> Iterator[str]:
    fit, points = study.fit, study.points
    left_out = f", {len(study.exclusions)} left out" if study.exclusions else ""
    yield from wrap(f"Fit of {study.name}: {num_points(len(points))}{left_out}", WIDTH)
    yield ""
    yield from wrap(
        f"  {formula_of(type(fit.law))}", WIDTH, subsequent_indent="    ", break_on_hyphens=False
    )
    if "size" in fit.ranges and points.size_variable != "size":
        yield f"    N = {points.size_variable}"
    yield from coefficient_lines(fit, study.settings.level)
    yield from _derived(study)
    yield ""
    for asked in study.forecasts:
        yield from labelled("forecast", f"{asked.place}: {forecast_text(asked.forecast)}")
        if further := untested(asked.forecast, fit.form_rate, study.holdouts):
            yield from labelled("untested", further)
    yield from judged_lines(study.tests)
    yield from left_out_lines(study.exclusions)
    ranges = ", ".join(
        f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in fit.ranges.items()
    )
    yield from labelled("range", f"{ranges}, in {len(set(points.budget))} budgets")
    yield from fit_lines(fit, study.noise)
    yield from holdout_lines(study.holdouts, fit.drift)
    yield from warning_lines(fit)
    if study.comparison is not None:
        yield ""
        yield from comparison_lines(study.comparison)


def _derived(study: LawStudy) -> Iterator[str]:
    """What follows from the coefficients, as papers print it."""
    law = study.fit.law
    if isinstance(law, OverTrainingLaw) and law.a > 0 and law.b > 0:
        yield from labelled("optimum", f"{law.optimal_ratio():.4g} tokens a unit of size")
    if isinstance(law, PowerLaw) and law.b < 0:
        yield from labelled("y = 1", f"at x = {law.inverse(1.0):.4g}")
    if isinstance(law, RoutedLaw):
        base = ", ".join(f"{name} {value:.4g}" for name, value in law.base_10().items())
        rmse = math.sqrt(2 * study.fit.objective.value / len(study.points)) / math.log(10)
        yield from labelled("in log10", f"{base}; root mean square error {rmse:.4g}")
    if isinstance(law, LeverageLaw):
        lever = law.leverage()
        yield from labelled(
            "leverage",
            f"EL = Â^({lever.a:.3g} + {lever.d:.3g}·log10 C + {lever.gamma:.3g}·(log2 G)² + "
            f"{lever.beta:.3g}·log2 G)"
            + (f", best granularity {law.best_granularity():.3g}" if law.bg > 0 else ""),
        )
