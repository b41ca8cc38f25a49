"""Does a feature help, here and at the size it is meant for? A variant against its baseline.

Every run of the variant is held against the baseline's run of the same rung, tokens, seed and data,
so most of what moves a loss is in both and drops out. The gap is log(loss / baseline loss), at
equal compute: where a feature makes a model dearer, the baseline is given that compute too. Its
trend is a straight line in log-compute (least squares, Student's t) through the means of the cells,
a rung and a token count each (:mod:`analysis.cell_line`). What the gap is worth in compute is the
leverage (:mod:`analysis.leverage`), where the baseline's losses show their law.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from analysis.cell_line import CellLine, cell_line
from analysis.health import BENT
from analysis.lack_of_fit import UNLIKELY
from analysis.laws import Array
from analysis.leverage import (
    LEAST_CELLS,
    Leverage,
    LeverageCurve,
    LeverageMeter,
    PairedLosses,
)
from analysis.line import Line
from analysis.records import RunRecord
from analysis.results import FitError, FitWarning, Interval, Prediction
from analysis.wording import counted
from model.config import require

SCHEMA_VERSION = 2
"""1 had a multiplier of compute at the targets alone, read off one exponent."""
LEAST_PAIRS = 4
"""A line and two degrees of freedom for its noise."""
MOST_AHEAD = 1000.0
"""A straight line is believed this many times beyond the largest pair's compute."""


def percent(gap: float) -> str:
    """A gap for people, in percent of the baseline's loss: two decimals, or one digit where those
    would all be zero. A gap is a logarithm, so far out -120 of its hundredths are -70%."""
    share = float(np.expm1(gap))
    return f"{share:+.2%}" if abs(share) >= 5e-5 or share == 0 else f"{100 * share:+.1e}%"


class TrialStatus(Enum):
    """What keeps a trial from a plain answer."""

    WITHIN_NOISE = "the gap is no larger than chance makes it"
    TOO_FAR = "a target lies too far beyond the runs for their trend to be evidence"
    BENT = "the gap's trend bends with compute"
    UNEVEN = "the gap differs between cells by more than between their seeds"
    TREND_OPEN = "the runs don't tell whether the gap grows or shrinks"
    UNPAIRED = "some runs have no partner"
    FELL_BACK = "some runs did not compute in the precision they were planned in"
    DEARER = "the feature changes the compute of a run"
    NO_LEVERAGE = "the baseline's runs don't show the law that turns a gap into compute"
    NOT_REACHED = "the baseline may never come down to the variant's loss"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One run of the variant beside its baseline."""

    rung: str
    tokens: int
    seed: int
    flops: float
    """Of the baseline's run."""
    baseline: float
    variant: float
    """Losses in nats per token."""
    gap: float
    """log(variant / baseline) at equal compute; below zero the variant is better."""


@dataclass(frozen=True, kw_only=True)
class RungGap:
    """The gap on one rung, the mean over its budgets and seeds."""

    rung: str
    flops_per_token: float
    pairs: int
    gap: Interval


@dataclass(frozen=True, kw_only=True)
class DomainGap:
    """The gap in one domain's held-out loss, in the middle of the runs."""

    domain: str
    gap: Interval


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """The trend read at one compute."""

    name: str
    flops: float
    gap: Prediction
    leverage: Leverage | None
    """None where the baseline's runs don't show their law, or the target is too far for it."""
    helps: float
    """Probability that the gap is below zero, if the trend goes on."""
    is_far: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A feature's trial with its evidence: ``trial.json``."""

    schema_version: int = SCHEMA_VERSION
    sweep: str
    baseline: dict[str, str]
    variant: dict[str, str]
    pairs: tuple[Pair, ...]
    rungs: tuple[RungGap, ...]
    mean: Interval
    """The gap in the middle of the runs."""
    helps: float
    """Probability that it is below zero."""
    trend: Interval
    """What a tenfold compute adds to the gap."""
    exponent: float
    """Of the baseline's loss against compute, over these runs."""
    noise_sd: float
    """Spread of one pair about the trend."""
    targets: tuple[Ahead, ...]
    domains: tuple[DomainGap, ...] = ()
    """Empty for a corpus of one domain."""
    leverage: LeverageCurve | None = None
    """None where the baseline's runs don't show the law of their loss; a warning says why."""
    warnings: tuple[FitWarning, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.mean.low <= 0 <= self.mean.high:
            return (
                f"no difference seen: {percent(self.mean.value)} of the loss, "
                f"{percent(self.mean.low)} to {percent(self.mean.high)}"
            )
        word = "helps" if self.mean.value < 0 else "hurts"
        return (
            f"it {word} at these sizes: {percent(self.mean.value)} of the loss, "
            f"{percent(self.mean.low)} to {percent(self.mean.high)}"
        )


def run_trial(
    sweep: str,
    baseline: Mapping[str, str],
    variant: Mapping[str, str],
    pairs: Sequence[tuple[RunRecord, RunRecord]],
    targets: Mapping[str, float],
    *,
    unpaired: int = 0,
    unpaired_seeds: int = 0,
    level: float = 0.9,
) -> Trial:
    """Judge a feature from pairs of (baseline, variant) records.

    Args:
        sweep: its name.
        baseline: what the first of each pair has, dotted path to value, for the report.
        variant: what the second has.
        pairs: records equal in all but the feature.
        targets: training FLOPs by name, where the trend is read.
        unpaired: runs that were left out for want of a partner.
        unpaired_seeds: those of them that repeat a cell which the other side has once.
        level: of every interval.

    Raises:
        FitError: fewer pairs than a trend needs, or all of one compute.
    """
    require(0 < level < 1, f"level must be between 0 and 1, got {level}")
    if len(pairs) < LEAST_PAIRS:
        raise FitError(
            f"{len(pairs)} pairs of finished runs; a gap, its trend and its noise need at least "
            f"{LEAST_PAIRS}"
        )
    flops_N = np.array([base.train_flops for base, _ in pairs])
    if flops_N.max() / flops_N.min() < 1.5:
        raise FitError(f"all {len(pairs)} pairs have one compute; a trend needs several")
    log_N = np.log(flops_N)
    dearer_N = np.log([other.train_flops / base.train_flops for base, other in pairs])
    losses = [(base.heldout_nats, other.heldout_nats) for base, other in pairs]
    base_line, gap_N = _gaps(losses, log_N, dearer_N)
    exponent = -base_line.slope
    cells = [f"{base.rung} {base.tokens}" for base, _ in pairs]
    cell_N = np.unique(cells, return_inverse=True)[1]
    trend_of_cells = cell_line(log_N, gap_N, cell_N)
    line = trend_of_cells.line
    middle = line.middle
    mean = line.interval(middle, level)
    quantile = line.quantile(level)
    decade = np.log(10.0)
    trend = Interval(
        value=decade * line.slope,
        low=decade * (line.slope - quantile * line.slope_sd),
        high=decade * (line.slope + quantile * line.slope_sd),
        level=level,
    )
    meter, why_not = _meter(pairs, level)
    ahead = tuple(
        _ahead(name, flops, line, meter, float(flops_N.max()), level)
        for name, flops in targets.items()
    )
    leverage = meter.curve() if meter else None
    return Trial(
        sweep=sweep,
        baseline=dict(baseline),
        variant=dict(variant),
        pairs=tuple(
            Pair(
                rung=base.rung,
                tokens=base.tokens,
                seed=base.seed,
                flops=base.train_flops,
                baseline=base.heldout_nats,
                variant=other.heldout_nats,
                gap=float(gap),
            )
            for (base, other), gap in zip(pairs, gap_N, strict=True)
        ),
        rungs=_rungs(pairs, gap_N, trend_of_cells, level),
        mean=mean,
        helps=line.chance_below_zero(middle),
        trend=trend,
        exponent=float(exponent),
        noise_sd=trend_of_cells.run_sd,
        targets=ahead,
        domains=tuple(_by_domain(pairs, log_N, dearer_N, cell_N, level)),
        leverage=leverage,
        warnings=(
            *_warnings(mean, trend, ahead, dearer_N, pairs),
            *_unpaired_warnings(unpaired, unpaired_seeds),
            *_bend_warnings(line),
            *_uneven_warnings(trend_of_cells, leverage),
            *_leverage_warnings(leverage, why_not),
        ),
    )


def _meter(
    pairs: Sequence[tuple[RunRecord, RunRecord]], level: float
) -> tuple[LeverageMeter | None, str]:
    """What reads leverages, or why there is none."""
    try:
        return LeverageMeter(PairedLosses.of(pairs), level), ""
    except FitError as error:
        return None, str(error)


def _gaps(
    losses: Sequence[tuple[float, float]], log_N: Array, dearer_N: Array
) -> tuple[Line, Array]:
    """The baseline's line, and the gap of each pair at the variant's compute by its exponent."""
    base_N, other_N = np.log(np.array(losses)).T
    line = Line(log_N, base_N)
    return line, other_N - base_N + max(-line.slope, 0.0) * dearer_N


def _by_domain(
    pairs: Sequence[tuple[RunRecord, RunRecord]],
    log_N: Array,
    dearer_N: Array,
    cell_N: NDArray[np.intp],
    level: float,
) -> Iterator[DomainGap]:
    records = [record for pair in pairs for record in pair]
    domains = [
        name for name in records[0].by_domain if all(name in record.by_domain for record in records)
    ]
    for name in domains if len(domains) > 1 else ():
        losses = [
            (base.by_domain[name].loss_nats, other.by_domain[name].loss_nats)
            for base, other in pairs
        ]
        line = cell_line(log_N, _gaps(losses, log_N, dearer_N)[1], cell_N).line
        yield DomainGap(domain=name, gap=line.interval(line.middle, level))


def _ahead(
    name: str, flops: float, line: Line, meter: LeverageMeter | None, largest: float, level: float
) -> Ahead:
    at = float(np.log(flops))
    gap = line.interval(at, level)
    ratio = flops / largest
    is_far = ratio > MOST_AHEAD
    return Ahead(
        name=name,
        flops=flops,
        gap=Prediction(
            value=gap.value,
            low=gap.low,
            high=gap.high,
            level=level,
            extrapolation_ratio=ratio,
        ),
        leverage=None if meter is None or is_far else meter.at(flops),
        helps=line.chance_below_zero(at),
        is_far=is_far,
    )


def _rungs(
    pairs: Sequence[tuple[RunRecord, RunRecord]], gap_N: Array, trend: CellLine, level: float
) -> tuple[RungGap, ...]:
    """Means by rung; their noise is the spread about the common trend, which few cells share."""
    by_rung: dict[str, list[int]] = {}
    for index, (base, _) in enumerate(pairs):
        by_rung.setdefault(base.rung, []).append(index)
    found = []
    for rung, rows in by_rung.items():
        value = float(gap_N[rows].mean())
        reach = trend.line.quantile(level) * trend.mean_sd(rows)
        found.append(
            RungGap(
                rung=rung,
                flops_per_token=pairs[rows[0]][0].flops_per_token,
                pairs=len(rows),
                gap=Interval(value=value, low=value - reach, high=value + reach, level=level),
            )
        )
    return tuple(sorted(found, key=lambda gap: gap.flops_per_token))


def _warnings(
    mean: Interval,
    trend: Interval,
    ahead: Sequence[Ahead],
    dearer_N: Array,
    pairs: Sequence[tuple[RunRecord, RunRecord]],
) -> list[FitWarning]:
    found: list[tuple[TrialStatus, str]] = []
    if mean.low <= 0 <= mean.high:
        found.append(
            (TrialStatus.WITHIN_NOISE, "the gap's interval holds zero: more seeds would narrow it")
        )
    if trend.low <= 0 <= trend.high:
        found.append(
            (
                TrialStatus.TREND_OPEN,
                f"a tenfold compute adds {percent(trend.low)} to {percent(trend.high)}: the runs "
                "don't tell whether the gap grows or shrinks",
            )
        )
    far = [target for target in ahead if target.is_far]
    if far:
        named = ", ".join(
            f"{target.name} ({target.gap.extrapolation_ratio:.1g} times)" for target in far
        )
        found.append(
            (
                TrialStatus.TOO_FAR,
                f"{named} beyond the largest pair; a straight line is believed up to "
                f"{MOST_AHEAD:,.0f} times, so there only: if the trend went on",
            )
        )
    fallen = [record for pair in pairs for record in pair if record.fp8_fallen]
    if fallen:
        layers = sum(len(record.fp8_fallen) for record in fallen)
        found.append(
            (
                TrialStatus.FELL_BACK,
                f"{len(fallen)} of the runs in FP8 computed layers in bfloat16 after all "
                f"({layers} in sum): the gap is of what they did, not of FP8 alone",
            )
        )
    most = float(np.abs(np.expm1(dearer_N)).max())
    if most > 0.001:
        found.append(
            (
                TrialStatus.DEARER,
                f"a run's compute changes by up to {most:.1%}; gaps are at equal compute",
            )
        )
    return [FitWarning(status=status.name, sentence=sentence) for status, sentence in found]


def _unpaired_warnings(unpaired: int, seeds: int) -> Iterator[FitWarning]:
    if unpaired:
        sentence = f"{counted(unpaired, 'run has', 'runs have')} no finished partner"
        if seeds:
            which = "they repeat" if seeds == unpaired else f"{seeds} of them repeat"
            sentence += (
                f"; {which} a cell on one side alone, and ladder.noise_of=every_variant repeats it "
                "on both"
            )
        yield FitWarning(status=TrialStatus.UNPAIRED.name, sentence=sentence)


def _bend_warnings(line: Line) -> Iterator[FitWarning]:
    chance = line.bend_chance()
    if chance < BENT:
        sentence = (
            f"the gap bends along the ladder (by chance once in {1 / chance:.3g} trials of a "
            "straight trend): at larger compute it is known less well than its intervals say"
        )
        yield FitWarning(status=TrialStatus.BENT.name, sentence=sentence)


def _uneven_warnings(trend: CellLine, leverage: LeverageCurve | None) -> Iterator[FitWarning]:
    """Cells of one rung and token count that differ by more than their seeds.

    The leverage needs more cells than the trend to be read from their means.
    """
    found = trend.weighting
    if found is None or found.chance >= UNLIKELY:
        return
    so = (
        "the intervals rest on the cells' means"
        if trend.by_cells
        else f"{found.cells} cells are too few to widen the intervals by, so they are too narrow"
    )
    if leverage is not None and trend.by_cells and found.cells < LEAST_CELLS:
        so += f", but {found.cells} cells are too few for the leverage's, which are too narrow"
    sentence = (
        f"the trend misses the cells by more than their seeds differ (by chance once in "
        f"{1 / found.chance:.3g} trials): seeds of one cell are no evidence of their own, {so}; "
        "more sizes or budgets would narrow them, not more seeds"
    )
    yield FitWarning(status=TrialStatus.UNEVEN.name, sentence=sentence)


def _leverage_warnings(leverage: LeverageCurve | None, why_not: str) -> Iterator[FitWarning]:
    if leverage is None:
        sentence = f"no leverage can be read: {why_not}"
        yield FitWarning(status=TrialStatus.NO_LEVERAGE.name, sentence=sentence)
    elif leverage.largest.high is None:
        sentence = (
            f"by {leverage.largest.unreached_frac:.0%} of the laws that the baseline's runs allow "
            "no compute reaches the variant's loss at the largest compute: the leverage may be any "
            "number from the interval's lower end on"
        )
        yield FitWarning(status=TrialStatus.NOT_REACHED.name, sentence=sentence)
