"""The optima of a grid on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

import numpy as np

from analysis.hyperparam_laws import FORM_RATE, cells_in_no_law
from analysis.optima_study import OptimaStudy
from analysis.summary_lines import (
    between,
    forecast_text,
    labelled,
    left_out_lines,
    num_points,
)
from analysis.wording import WIDTH


def summarise_optima(study: OptimaStudy) -> str:
    """The text of ``windtunnel fit law=isoflop`` or ``law=learning_rate``, 100 columns wide."""
    return "\n".join(line.rstrip() for line in _lines(study)) + "\n"


def _lines(study: OptimaStudy) -> Iterator[str]:
    left_out = f", {len(study.exclusions)} left out" if study.exclusions else ""
    count = num_points(len(study.points))
    yield from wrap(f"Optima of {study.name}: {count}{left_out}", WIDTH)
    yield ""
    yield from _budgets(study) if study.budgets else _cells(study)
    yield ""
    for what, fit in study.fits.items():
        a, b = fit.law.parameters
        name, _, of = what.partition(" ")  # "N*, parabola", "peak_lr against C"
        yield from labelled(
            name.rstrip(","),
            f"{a:.4g}·C^{b:.4g} ({between(fit.coefficients['b'])}), {of}, {fit.num_points} optima"
            f"{_left_out(study, name)}",
        )
    for what, plane in study.planes.items():
        name = what.split(" ")[0]
        yield from labelled(
            name,
            f"{plane.coefficient:.4g}·N^{plane.size_exponent.value:.4g} "
            f"({between(plane.size_exponent)})·D^{plane.token_exponent.value:.4g} "
            f"({between(plane.token_exponent)}), {plane.num_points} optima"
            f"{_left_out(study, name)}",
        )
    for what, forecast in study.forecasts.items():
        yield from labelled("forecast", f"{what}: {forecast_text(forecast)}")
    if (
        any(forecast.extrapolation_ratio > 1 for forecast in study.forecasts.values())
        and study.cells
    ):
        yield from labelled(
            "beyond",
            "the intervals hold what published sweeps were off by beyond their cells, a factor of "
            f"{np.exp(FORM_RATE):.3g} at an e-fold of size or tokens (in quadrature)",
        )
    for warning in study.warnings:
        yield from labelled("warning", warning)
    for note in study.notes:
        yield from labelled("no law", note)
    yield from left_out_lines(study.exclusions)


def _left_out(study: OptimaStudy, setting: str) -> str:
    left_out = cells_in_no_law(study.cells, setting)
    return f"; left out {left_out}" if left_out else ""


def _budgets(study: OptimaStudy) -> Iterator[str]:
    yield (
        f"    {'FLOPs':>10}{'runs':>6}{'parabola: size':>16}{'loss':>9}  {'status':<16}"
        f"{'lowest run: size':>16}{'tokens':>11}{'loss':>9}"
    )
    for optimum in study.budgets:
        yield (
            f"    {optimum.flops:>10.3g}{optimum.num_runs:>6}{optimum.size:>16.4g}"
            f"{optimum.loss:>9.4f}  {optimum.status:<16}{optimum.best_size:>16.4g}"
            f"{optimum.best_tokens:>11.3g}{optimum.best_loss:>9.4f}"
        )


def _cells(study: OptimaStudy) -> Iterator[str]:
    has_batch = "batch_tokens" in study.points.extra
    batch = f"{'batch':>11}" if has_batch else ""
    yield (
        f"    {'size':>10}{'tokens':>11}{'runs':>6}{'peak_lr':>11}{'within 0.25%':>24}{batch}"
        f"{'loss':>9}  status"
    )
    for cell in study.cells:
        ends = f"{cell.lr_range[0]:.3g} to {cell.lr_range[1]:.3g}"
        batch = f"{cell.batch_tokens:>11.4g}" if has_batch else ""
        yield (
            f"    {cell.size:>10.3g}{cell.tokens:>11.3g}{cell.num_runs:>6}{cell.peak_lr:>11.3g}"
            f"{ends:>24}{batch}{cell.loss:>9.4f}  {cell.status}"
        )
