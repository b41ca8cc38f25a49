"""Do the intervals hold what they promise: hits against what was promised, over the whole ledger.

A single forecast says little, so the hit rate comes with its own interval, and beside it stands how
sharp the forecasts were: intervals that always hold because they are wide are no skill. Nor are
intervals that hold while every measurement lies on the same side of its forecast: that is a bias,
and the sides are counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from scipy import stats

from analysis.results import Interval
from analysis.wording import counted
from windtunnel.ledger_rows import Entry

UNLIKELY = 0.05
"""A chance below this is said."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Over the entries that count: measured, unaltered, registered before the run."""

    num_forecasts: int
    num_inside: int
    by_kind: dict[str, tuple[int, int]]
    """Inside and all of them, of sweeps and of tables; what there is none of is left out."""
    num_runs: int
    """Fewer than forecasts where a run was forecast more than once."""
    num_diverged: int
    """Of the forecasts: their runs came to no loss, which is a miss."""
    num_expected: float
    """Sum of the levels: how many ought to be inside."""
    hit_rate: Interval | None
    """With its 90% Clopper-Pearson interval; None without forecasts."""
    chance: float | None
    """Probability of a result at least as unlikely if every level were true (exact, two-sided);
    None without forecasts, or where their levels differ."""
    median_error: float | None
    """Median of |forecast / measured - 1| over the runs that ended; None without any."""
    median_offset: float | None
    """Median of measured / forecast - 1 over the same runs: below zero, forecasts were too high."""
    num_below: int
    """Measured losses below their forecasts."""
    num_above: int
    side_chance: float | None
    """Probability of sides at least as uneven if forecasts were as often too high as too low (the
    sign test, exact and two-sided); None without any."""
    median_width: float | None
    """Median width of the intervals over their value; None without forecasts."""


def calibration(entries: Iterable[Entry]) -> Calibration:
    """Hits, expected hits and sharpness of everything the ledger can be judged by."""
    judged = [entry for entry in entries if entry.counts]
    inside = sum(entry.verdict == "inside" for entry in judged)
    by_kind: dict[str, tuple[int, int]] = {}
    for entry in judged:
        held, all_of_them = by_kind.get(entry.kind, (0, 0))
        by_kind[entry.kind] = (held + (entry.verdict == "inside"), all_of_them + 1)
    forecasts = [entry.forecast.forecast for entry in judged]
    levels = {forecast.level for forecast in forecasts}
    pairs = [
        (entry.forecast.forecast.value, entry.measured)
        for entry in judged
        if entry.measured is not None
    ]
    below = sum(measured < foretold for foretold, measured in pairs)
    above = sum(measured > foretold for foretold, measured in pairs)
    sides = stats.binomtest(below, below + above) if below + above else None
    hit_rate, chance = None, None
    if judged:
        ends = stats.binomtest(inside, len(judged)).proportion_ci(0.9, method="exact")
        rate = inside / len(judged)
        hit_rate = Interval(value=rate, low=float(ends.low), high=float(ends.high), level=0.9)
        if len(levels) == 1:
            chance = float(stats.binomtest(inside, len(judged), levels.pop()).pvalue)
    return Calibration(
        num_forecasts=len(judged),
        num_inside=inside,
        by_kind=by_kind,
        num_runs=len({entry.forecast.run_id for entry in judged}),
        num_diverged=sum(entry.measured is None for entry in judged),
        num_expected=sum(forecast.level for forecast in forecasts),
        hit_rate=hit_rate,
        chance=chance,
        median_error=median(abs(f / m - 1) for f, m in pairs) if pairs else None,
        median_offset=median(m / f - 1 for f, m in pairs) if pairs else None,
        num_below=below,
        num_above=above,
        side_chance=float(sides.pvalue) if sides else None,
        median_width=median(f.width / f.value for f in forecasts) if forecasts else None,
    )


def calibration_sentence(found: Calibration) -> str:
    """The calibration in words, for the foot of the table."""
    if found.hit_rate is None:
        return "no forecast has been held against a measurement yet"
    kinds = [
        f"{held} of {all_of_them} of {kind}s"
        for kind, (held, all_of_them) in sorted(found.by_kind.items())
    ]
    told_apart = f" ({', '.join(kinds)})" if len(kinds) > 1 else ""
    rate = found.hit_rate
    diverged = counted(found.num_diverged, "run", "runs") if found.num_diverged else ""
    held = f"outcomes inside the interval, {diverged} diverged" if diverged else ""
    text = (
        f"{found.num_inside} of {found.num_forecasts} "
        f"{held or 'measured losses inside the interval'}"
        f"{told_apart}; {found.num_expected:.3g} were to be expected. Hit rate {rate.value:.0%}, "
        f"90% interval {rate.low:.0%} to {rate.high:.0%}"
    )
    if found.median_error is not None and found.median_width is not None:
        text += (
            f"; median miss {found.median_error:.2%}, median interval {found.median_width:.2%} of "
            "the forecast wide"
        )
    if found.side_chance is not None and found.side_chance < UNLIKELY:
        text += f". {_lean(found)}"
    if found.chance is not None and found.chance < UNLIKELY:
        text += f". The intervals do not hold what they promise (p = {found.chance:.2g})"
    elif found.num_forecasts < 10:
        text += ". Too few yet to judge the intervals"
    if found.num_runs < found.num_forecasts:
        text += f". They are of {counted(found.num_runs, 'run', 'runs')}, some forecast repeatedly"
    return text


def _lean(found: Calibration) -> str:
    more, side = max((found.num_below, "below"), (found.num_above, "above"))
    return (
        f"{more} of {found.num_below + found.num_above} measured losses lie {side} their forecasts "
        f"({found.median_offset:+.2%} in the median): the forecasts are biased "
        f"(p = {found.side_chance:.2g})"
    )
