"""Lines that every fit's screen is made of: coefficients, evidence, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from analysis.catalogue import AnyLaw, cut_ends
from analysis.drift import FORM_FURTHEST, Drift, form_allowance
from analysis.exclusion import Exclusion
from analysis.holdout import HeldOutPoint, Holdout
from analysis.judging import Comparison
from analysis.noise import NoiseFloor
from analysis.results import Fit, Interval, Prediction
from analysis.seed_weights import Weighting
from analysis.wording import WIDTH, brief, counted, largest_budgets, level_text

INDENT = 14
MOST_LABELS = 3
MOST_REASONS = 8
LONGEST_REASON = 160
"""Characters: two lines of the screen."""
MOST_TESTS = 12


def formula_of(law: type[AnyLaw]) -> str:
    """The law's formula and source, as its documentation begins."""
    return " ".join((law.__doc__ or law.__name__).split("\n\n")[0].split()).rstrip(".")


def coefficient_lines(fit: Fit, level: float) -> Iterator[str]:
    """A table of the coefficients with their intervals."""
    yield f"    {'':<8}{'value':>12}    {level_text(level)} interval"
    for name, interval in fit.coefficients.items():
        cut = cut_ends(fit.law, name, interval.low, interval.high)
        said = f" ({cut})" if cut else ""
        yield f"    {name:<8}{interval.value:>12.5g}    {between(interval)}{said}"


def left_out_lines(exclusions: Sequence[Exclusion]) -> Iterator[str]:
    """Each reason once, with its count and first labels; that of most runs first."""
    by_reason: dict[str, list[str]] = {}
    for exclusion in exclusions:
        by_reason.setdefault(exclusion.reason, []).append(exclusion.label)
    reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    is_whole = len(reasons) <= MOST_REASONS
    head = "left out"
    for reason, labels in reasons[:MOST_REASONS]:
        more = ", ..." if len(labels) > MOST_LABELS else ""
        told = brief(reason, LONGEST_REASON)
        is_whole = is_whole and told == " ".join(reason.split())
        named = f"{', '.join(labels[:MOST_LABELS])}{more}"
        yield from labelled(head, f"{len(labels)} {told} ({named})")
        head = ""
    if not is_whole:
        rest = len(reasons) - MOST_REASONS
        begins = counted(rest, "more reason", "more reasons") if rest > 0 else "shortened here"
        yield from labelled("", f"{begins}; the file written below has all, whole, as exclusions")


def fit_lines(fit: Fit, noise: NoiseFloor | None) -> Iterator[str]:
    """How the fit was made, and how far one run lies from it."""
    objective = fit.objective
    delta = "" if objective.delta is None else f", delta {objective.delta:.3g}"
    of = "log-loss" if objective.residual == "log" else "the loss"
    basins = counted(objective.basins, "optimum", "optima")
    yield from labelled(
        "objective",
        f"{objective.loss} on {of}{delta} ({objective.delta_rule}); sum {objective.value:.7g}, "
        f"{objective.starts} starts, {basins}, condition number "
        f"{fit.condition_number:.2g}",
    )
    yield from labelled("intervals", f"{fit.bootstrap}, {len(fit.replicates)} replicates")
    seeds = "no repeated seeds"
    if noise is not None:
        repeats = counted(noise.degrees_of_freedom, "repeat", "repeats")
        seeds = f"seeds differ by {noise.sd:.2%} ({repeats})"
    yield from labelled(
        "noise",
        f"{seeds}; a new run lies within {fit.noise_sd:.2%} of the law (standard deviation)",
    )
    if fit.weighting is not None:
        yield from labelled("weights", _weights(fit.weighting))


def holdout_lines(holdouts: Sequence[Holdout], drift: Drift | None) -> Iterator[str]:
    """The largest budgets forecast from the rest, and what that says of the law's form."""
    for holdout in holdouts:
        largest = max(point.forecast.extrapolation_ratio for point in holdout.points)
        yield from labelled(
            "hold-out",
            f"without the {largest_budgets(holdout.budgets)}: "
            f"{num_points(len(holdout.points))} up to {times(largest)} times "
            f"beyond, "
            f"off by {holdout.mean_abs_error:.2%} on average, {holdout.num_inside} of "
            f"{len(holdout.points)} inside the interval",
        )
    if drift is not None:
        yield from labelled("drift", _drift(drift))
    if not holdouts:
        yield from labelled("hold-out", "none: too few points to leave a budget out")


def judged_lines(tests: Sequence[HeldOutPoint]) -> Iterator[str]:
    """Rows that were forecast because the caller asked, the furthest out first."""
    furthest = sorted(tests, key=lambda point: -point.forecast.extrapolation_ratio)
    for point in furthest[:MOST_TESTS]:
        where = "inside" if point.inside else "OUTSIDE"
        yield from labelled(
            "forecast",
            f"{point.label}: {forecast_text(point.forecast)}; measured {point.measured:.4g}, "
            f"off by {point.error:+.2%}, {where}",
        )
    if tests:
        error = sum(abs(point.error) for point in tests) / len(tests)
        inside = sum(point.inside for point in tests)
        below = sum(point.measured < point.forecast.value for point in tests)
        hidden = f"; the {MOST_TESTS} furthest out are shown" if len(tests) > MOST_TESTS else ""
        yield from labelled(
            "forecasts",
            f"{inside} of {len(tests)} measured losses inside, off by {error:.2%} on average, "
            f"{below} below their forecast{hidden}",
        )


def warning_lines(fit: Fit) -> Iterator[str]:
    """What the health check found."""
    if not fit.warnings:
        yield from labelled("warnings", "none")
    for warning in fit.warnings:
        yield from labelled("warning", f"{warning.status}: {warning.sentence}")


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Laws by their hold-out error, and which to use."""
    most = max(len(score.errors) for score in comparison.scores)
    heads = "".join(f"{f'-{i + 1} budgets':>12}" for i in range(most))
    yield f"  Laws by hold-out error    {'mean':>8}{heads}{'inside':>12}{'parameters':>12}"
    for score in comparison.scores:
        if not score.errors:
            yield from wrap(f"    {score.name}: {score.note}", WIDTH, subsequent_indent=" " * 6)
            continue
        errors = "".join(f"{error:>12.2%}" for error in score.errors)
        errors += " " * 12 * (most - len(score.errors))
        inside = f"{score.num_inside} of {score.num_points}"
        line = f"    {score.name:<22}{score.error:>8.2%}{errors}"
        yield f"{line}{inside:>12}{score.num_parameters:>12}"
    yield from wrap(f"    use {comparison.picked}: {comparison.reason}", WIDTH)


def forecast_text(forecast: Prediction) -> str:
    """A forecast with its interval and its distance."""
    return (
        f"{forecast.value:.4g} ({between(forecast)}), "
        f"{times(forecast.extrapolation_ratio)} times the largest fitted"
    )


def untested(forecast: Prediction, form_rate: float, holdouts: Sequence[Holdout]) -> str:
    """What no hold-out has tried, where a forecast lies further out than all of them; or "".

    ``form_rate``: of the fit that made the forecast, what it allows for its form.
    """
    ratio, tried = forecast.extrapolation_ratio, furthest_tried(holdouts)
    if ratio <= tried:
        return ""
    where = f"beyond {times(tried)} times (the hold-outs)" if tried > 1 else "beyond its points"
    if not form_rate:
        return f"{where} the interval takes the law's form for granted"
    allowed = float(form_allowance(ratio, forecast.level, form_rate))
    sentence = (
        f"{where} the law's form was not tried here; the interval holds ±{allowed:.1%} for it (in "
        "quadrature), what published tables needed"
    )
    if ratio > FORM_FURTHEST:
        sentence += f" up to {FORM_FURTHEST:g} times"
    return sentence


def furthest_tried(holdouts: Sequence[Holdout]) -> float:
    """How many times beyond the compute fitted a hold-out went; 1 without any."""
    points = (point for held in holdouts for point in held.points)
    return max((point.forecast.extrapolation_ratio for point in points), default=1.0)


def between(interval: Interval) -> str:
    """Low to high."""
    return f"{interval.low:.4g} to {interval.high:.4g}"


def num_points(count: int) -> str:
    """``1 point``, ``2 points``."""
    return counted(count, "point", "points")


def times(ratio: float) -> str:
    """A ratio for people."""
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:,.0f}"


def labelled(label: str, text: str) -> list[str]:
    """A label and its text, wrapped beside it."""
    lines = wrap(text, WIDTH - max(INDENT, len(label) + 3), break_on_hyphens=False)
    head = f"  {label:<{INDENT - 3}} "  # a long label still ends before the text
    return [f"{head if i == 0 else ' ' * INDENT}{line}" for i, line in enumerate(lines)]


def _weights(weighting: Weighting) -> str:
    if weighting.even:
        return "every run alike: no cell lies further from the law than its seeds explain"
    most = weighting.most_seeds
    return (
        f"the law misses cells by {weighting.misfit_sd:.2%} beyond their seeds' "
        f"{weighting.seeds_sd:.2%}, so a cell of {most} seeds weighs "
        f"{weighting.of_cell(most):.2g} times a single run"
    )


def _drift(drift: Drift) -> str:
    side = {"below": "downwards", "above": "upwards", "both": "both ways"}[drift.side]
    return (
        f"the law's form is seen to be wrong: one e-fold of compute beyond its points it was off "
        f"by {drift.rate:.2%} (the worst of {drift.cuts} cuts), which grows with the distance; "
        f"forecasts beyond the points are widened {side} by that"
    )
