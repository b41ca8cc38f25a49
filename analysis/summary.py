"""A study on one screen: what was fitted, from what, how far it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

import numpy as np

from analysis.allocation import exponents, optimum
from analysis.laws import LossSurface
from analysis.points import Points
from analysis.results import Fit
from analysis.sensitivity import Sensitivity
from analysis.sparkline import sparkline
from analysis.study import Study
from analysis.summary_lines import (
    INDENT,
    between,
    coefficient_lines,
    comparison_lines,
    fit_lines,
    forecast_text,
    holdout_lines,
    judged_lines,
    labelled,
    left_out_lines,
    num_points,
    times,
    untested,
    warning_lines,
)
from analysis.wording import WIDTH

AHEAD = 10.0
"""Without a compute of the caller's, the optimum is shown at this many times the largest run's."""


MOST_CURVES = 8
WIDEST_CURVE = 24
SHORTEST_CURVE = 3
"""Fewer token counts draw no curve."""
SHORT_NAMES = {"normalized_entropy": "entropy"}
"""Of measures too long for the screen's first column."""


def summarise(study: Study, flops: float | None) -> str:
    """The text of ``windtunnel fit``, at most 100 columns wide."""
    return "\n".join(line.rstrip() for line in _lines(study, flops)) + "\n"


def _lines(study: Study, flops: float | None) -> Iterator[str]:
    left_out = f", {len(study.exclusions)} left out" if study.exclusions else ""
    yield from wrap(f"Fit of {study.name}: {num_points(len(study.points))}{left_out}", WIDTH)
    yield ""
    size = study.points.size_variable
    yield f"  L(N, D) = E + A/N^alpha + B/D^beta, N = {size}, D = tokens, L in nats per token"
    yield from coefficient_lines(study.surface, study.settings.level)
    yield ""
    yield from _curves(study.points)
    yield from _frontier(study)
    yield from _optimum(study, flops)
    yield from _utilisation(study, flops)
    for asked in study.forecasts:
        yield from labelled("forecast", f"{asked.place}: {forecast_text(asked.forecast)}")
        if further := untested(asked.forecast, study.surface.form_rate, study.holdouts):
            yield from labelled("untested", further)
    yield from judged_lines(study.tests)
    yield ""
    yield from left_out_lines(study.exclusions)
    yield from _range(study)
    yield from fit_lines(study.surface, study.noise)
    yield from holdout_lines(study.holdouts, study.surface.drift)
    yield from warning_lines(study.surface)
    if study.comparison is not None:
        yield ""
        yield from comparison_lines(study.comparison)
    if study.sensitivity is not None:
        yield ""
        yield from _sensitivity(study, study.sensitivity)


def _curves(points: Points) -> Iterator[str]:
    """What more tokens bought each size, on one scale; of many sizes some."""
    by_size: dict[float, dict[float, list[float]]] = {}
    for size, tokens, loss in zip(points.size, points.tokens, points.loss, strict=True):
        by_size.setdefault(size, {}).setdefault(tokens, []).append(loss)
    curves = {
        size: [sum(runs) / len(runs) for _, runs in sorted(found.items())]
        for size, found in sorted(by_size.items())
        if len(found) >= SHORTEST_CURVE
    }
    sizes = list(curves)
    if len(sizes) > MOST_CURVES:
        sizes = [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, MOST_CURVES)]
    low, high = np.log([min(points.loss), max(points.loss)]).tolist()
    for size in sizes:
        losses = curves[size]
        width = min(len(losses), WIDEST_CURVE)
        drawn = sparkline(np.log(losses).tolist(), width, low=low, high=high)
        said = f"{losses[0]:.4g} to {losses[-1]:.4g} over {len(losses)} token counts"
        yield f"  {f'N {size:.3g}':<{INDENT - 2}}{drawn}  {said}"
    if sizes:
        few = f", {len(sizes)} of {len(curves)} sizes" if len(sizes) < len(curves) else ""
        yield from labelled("", f"loss from few tokens to many, on one logarithmic scale{few}")


def _frontier(study: Study) -> Iterator[str]:
    fit = study.compute_law
    E, a, b = fit.law.parameters
    yield from labelled(
        "L(C)",
        f"{E:.4g} + {a:.4g}·C^-{b:.4g}, exponent {between(fit.coefficients['b'])}: {fit.name}",
    )


def _optimum(study: Study, flops: float | None) -> Iterator[str]:
    law = study.surface.law
    assert isinstance(law, LossSurface)
    if not law.has_optimum:
        yield from labelled("optimum", "none: one of the two terms is nothing")
        return
    level = study.settings.level
    size_exponent, token_exponent = exponents(study.surface, level)
    yield from labelled(
        "optimum",
        f"N* = {law.optimal_size().a:.3g}·C^{size_exponent.value:.3f} "
        f"(exponent {between(size_exponent)}), D* = {law.optimal_tokens().a:.3g}·"
        f"C^{token_exponent.value:.3f} ({between(token_exponent)})",
    )
    at = flops or AHEAD * study.surface.largest_compute
    best = optimum(study.surface, at, level)
    yield from labelled(
        f"C = {at:.2g}",
        f"N* {best.size.value:.3g} ({between(best.size)}), D* {best.tokens.value:.3g} "
        f"({between(best.tokens)}), loss {best.loss.value:.4g} ({between(best.loss)}); "
        f"{times(best.loss.extrapolation_ratio)} times the largest compute fitted",
    )
    if further := untested(best.loss, study.surface.form_rate, study.holdouts):
        yield from labelled("untested", further)


def _utilisation(study: Study, flops: float | None) -> Iterator[str]:
    """The experts' use along the frontier, forecast where the optimum was shown."""
    at = flops or AHEAD * study.surface.largest_compute
    for law in study.utilisation:
        forecast = law.forecast(at, study.settings.level)
        if forecast is None:
            yield from labelled(SHORT_NAMES.get(law.name, law.name)[: INDENT - 3], law.note)
        else:
            yield from labelled(
                SHORT_NAMES.get(law.name, law.name)[: INDENT - 3],
                f"{law.formula}; at C = {at:.2g} {forecast.value:.3g} ({between(forecast)})",
            )


def _range(study: Study) -> Iterator[str]:
    fit = study.surface
    low, high = fit.ranges["size"]
    fewest, most = fit.ranges["tokens"]
    yield from labelled(
        "range",
        f"N {low:.3g} to {high:.3g}, D {fewest:.3g} to {most:.3g}, C {fit.smallest_compute:.3g} "
        f"to {fit.largest_compute:.3g} in {len(set(study.points.budget))} budgets",
    )


def _sensitivity(study: Study, sensitivity: Sensitivity) -> Iterator[str]:
    first = sensitivity.choices[0].flops_per_token
    yield (
        f"  Other defensible choices at C = {sensitivity.flops:.2g}: the recommended model differs "
        f"{sensitivity.spread:.3g}-fold"
    )
    yield f"    {'':<47}{'FLOPs/token':>12}{'tokens':>11}{'loss':>9}  of the first"
    for choice in sensitivity.choices:
        label = (
            f"    {choice.group}: {choice.name}" if choice.group != choice.name else "    in use"
        )
        if choice.flops_per_token is None or choice.tokens is None:
            yield from wrap(f"{label}: {choice.note}", WIDTH, subsequent_indent=" " * 6)
            continue
        ratio = f"{choice.flops_per_token / first:>10.2f} x" if first else ""
        loss = f"{choice.loss:>9.4f}" if choice.loss is not None else f"{'':>9}"
        yield f"{label:<51}{choice.flops_per_token:>12.3g}{choice.tokens:>11.3g}{loss}{ratio}"
    yield from _apart(study.surface, sensitivity)


def _apart(fit: Fit, sensitivity: Sensitivity) -> Iterator[str]:
    """Each kind of interval in a column of its own: they answer different questions."""
    yield f"  {'Intervals apart':<12}{'over runs':>24}{'over seeds':>24}{'profile likelihood':>24}"
    for name, over_runs in fit.coefficients.items():
        others = [
            between(kind[name]) if name in kind else "-"
            for kind in (sensitivity.seeds, sensitivity.profile)
        ]
        yield f"    {name:<13}{between(over_runs):>24}{others[0]:>24}{others[1]:>24}"
    if not sensitivity.seeds:
        yield "    over seeds: none, no seed was repeated"
