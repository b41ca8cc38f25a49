"""A study on one screen: what was fitted, from what, how far it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from analysis.allocation import exponents, optimum
from analysis.drift import Drift
from analysis.judging import Comparison
from analysis.laws import LossSurface
from analysis.results import Interval
from analysis.sensitivity import Sensitivity
from analysis.study import Study

WIDTH = 100
INDENT = 14
AHEAD = 10.0
"""Without a compute of the caller's, the optimum is shown at this many times the largest run's."""
MOST_LABELS = 3


def summarise(study: Study, flops: float | None) -> str:
    """The text of ``windtunnel fit``, at most 100 columns wide."""
    return "\n".join(line.rstrip() for line in _lines(study, flops)) + "\n"


def _lines(study: Study, flops: float | None) -> Iterator[str]:
    left_out = f", {len(study.exclusions)} left out" if study.exclusions else ""
    yield from wrap(f"Fit of {study.name}: {_points(len(study.points))}{left_out}", WIDTH)
    yield ""
    yield from _coefficients(study)
    yield ""
    yield from _frontier(study)
    yield from _optimum(study, flops)
    yield ""
    yield from _evidence(study)
    yield from _warnings(study)
    if study.comparison is not None:
        yield ""
        yield from _comparison(study.comparison)
    if study.sensitivity is not None:
        yield ""
        yield from _sensitivity(study.sensitivity)


def _coefficients(study: Study) -> Iterator[str]:
    size = study.points.size_variable
    yield f"  L(N, D) = E + A/N^alpha + B/D^beta, N = {size}, D = tokens, L in nats per token"
    level = f"{study.settings.level:.0%} interval"
    yield f"    {'':<8}{'value':>12}    {level}"
    for name, interval in study.surface.coefficients.items():
        yield f"    {name:<8}{interval.value:>12.5g}    {_between(interval)}"


def _frontier(study: Study) -> Iterator[str]:
    fit = study.compute_law
    E, a, b = fit.law.parameters
    yield from _labelled(
        "L(C)",
        f"{E:.4g} + {a:.4g}·C^-{b:.4g}, exponent {_between(fit.coefficients['b'])}: {fit.name}",
    )


def _optimum(study: Study, flops: float | None) -> Iterator[str]:
    law = study.surface.law
    assert isinstance(law, LossSurface)
    if not (law.A > 0 and law.B > 0):
        yield from _labelled("optimum", "none: one of the two terms is nothing")
        return
    level = study.settings.level
    size_exponent, token_exponent = exponents(study.surface, level)
    yield from _labelled(
        "optimum",
        f"N* = {law.optimal_size().a:.3g}·C^{size_exponent.value:.3f} "
        f"({_between(size_exponent)}), D* = {law.optimal_tokens().a:.3g}·"
        f"C^{token_exponent.value:.3f} ({_between(token_exponent)})",
    )
    at = flops or AHEAD * study.surface.largest_compute
    best = optimum(study.surface, at, level)
    yield from _labelled(
        f"C = {at:.2g}",
        f"N* {best.size.value:.3g} ({_between(best.size)}), D* {best.tokens.value:.3g} "
        f"({_between(best.tokens)}), loss {best.loss.value:.4g} ({_between(best.loss)}); "
        f"{_times(best.loss.extrapolation_ratio)} times the largest compute fitted",
    )


def _evidence(study: Study) -> Iterator[str]:
    fit, points = study.surface, study.points
    if study.exclusions:
        yield from _labelled("left out", _reasons(study))
    low, high = fit.ranges["size"]
    fewest, most = fit.ranges["tokens"]
    yield from _labelled(
        "range",
        f"N {low:.3g} to {high:.3g}, D {fewest:.3g} to {most:.3g}, C {fit.smallest_compute:.3g} "
        f"to {fit.largest_compute:.3g} in {len(set(points.budget))} budgets",
    )
    objective = fit.objective
    delta = "" if objective.delta is None else f", delta {objective.delta:.3g}"
    yield from _labelled(
        "objective",
        f"{objective.loss} on log-loss{delta} ({objective.delta_rule}); sum {objective.value:.7g}, "
        f"{objective.starts} starts, {objective.basins} optima, condition number "
        f"{fit.condition_number:.2g}",
    )
    yield from _labelled("intervals", f"{fit.bootstrap}, {len(fit.replicates)} replicates")
    noise = study.noise
    seeds = (
        "no repeated seeds"
        if noise is None
        else f"seeds differ by {noise.sd:.2%} ({noise.degrees_of_freedom} repeats)"
    )
    yield from _labelled(
        "noise",
        f"{seeds}; a new run lies within {fit.noise_sd:.2%} of the law (standard deviation)",
    )
    for holdout in study.holdouts:
        largest = max(point.forecast.extrapolation_ratio for point in holdout.points)
        which = "largest budget" if holdout.budgets == 1 else f"{holdout.budgets} largest budgets"
        yield from _labelled(
            "hold-out",
            f"without the {which}: {_points(len(holdout.points))} up to {_times(largest)} times "
            f"beyond, "
            f"off by {holdout.mean_abs_error:.2%} on average, {holdout.num_inside} of "
            f"{len(holdout.points)} inside their intervals",
        )
    if fit.drift is not None:
        yield from _labelled("drift", _drift(fit.drift))
    if not study.holdouts:
        yield from _labelled("hold-out", "none: too few points to leave a budget out")


def _drift(drift: Drift) -> str:
    side = {"below": "downwards", "above": "upwards", "both": "both ways"}[drift.side]
    return (
        f"the law's form is seen to be wrong: one e-fold of compute beyond its points it was off "
        f"by {drift.rate:.2%} (the worst of {drift.cuts} cuts), which grows with the distance; "
        f"forecasts beyond the points are widened {side} by that"
    )


def _warnings(study: Study) -> Iterator[str]:
    if not study.surface.warnings:
        yield from _labelled("warnings", "none")
    for warning in study.surface.warnings:
        yield from _labelled("warning", f"{warning.status}: {warning.sentence}")


def _comparison(comparison: Comparison) -> Iterator[str]:
    most = max(len(score.errors) for score in comparison.scores)
    heads = "".join(f"{f'-{i + 1} budgets':>12}" for i in range(most))
    yield f"  Laws by hold-out error    {'mean':>8}{heads}{'inside':>12}{'parameters':>12}"
    for score in comparison.scores:
        if not score.errors:
            yield from wrap(f"    {score.name}: {score.note}", WIDTH, subsequent_indent=" " * 6)
            continue
        errors = "".join(f"{error:>12.2%}" for error in score.errors)
        inside = f"{score.num_inside} of {score.num_points}"
        line = f"    {score.name:<22}{score.error:>8.2%}{errors}"
        yield f"{line}{inside:>12}{score.num_parameters:>12}"
    yield from wrap(f"    use {comparison.picked}: {comparison.reason}", WIDTH)


def _sensitivity(sensitivity: Sensitivity) -> Iterator[str]:
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
    for name, interval in sensitivity.profile.items():
        yield f"    profile likelihood, {name}: {_between(interval)}"


def _reasons(study: Study) -> str:
    """Each reason once, with its count and first labels."""
    by_reason: dict[str, list[str]] = {}
    for exclusion in study.exclusions:
        by_reason.setdefault(exclusion.reason, []).append(exclusion.label)
    parts = []
    for reason, labels in by_reason.items():
        more = ", ..." if len(labels) > MOST_LABELS else ""
        parts.append(f"{len(labels)} {reason} ({', '.join(labels[:MOST_LABELS])}{more})")
    return "; ".join(parts)


def _points(count: int) -> str:
    return f"{count} point" if count == 1 else f"{count} points"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:,.0f}"


def _between(interval: Interval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}"


def _labelled(label: str, text: str) -> list[str]:
    lines = wrap(text, WIDTH - INDENT, break_on_hyphens=False)
    return [f"  {label if i == 0 else '':<{INDENT - 2}}{line}" for i, line in enumerate(lines)]
