"""A sweep run by design: of the ladder's cells always those that tell most about the target.

The grid is the pool. The cheapest runs come first, enough for a law; then the law so far chooses
the next batch by what each run does to the forecast at the target for its compute
(`analysis.design`), is fitted again, and so on until the budget is spent or the forecast is narrow
enough. Whatever was measured before counts, so the same command goes on where it ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.design import Candidate, next_runs
from analysis.fitting import fit_surface
from analysis.laws import LossSurface
from analysis.noise import noise_floor
from analysis.points import Points, points_from_records
from analysis.records import RecordSet
from analysis.results import Fit
from analysis.settings import FitSettings
from analysis.study import check_spread
from model.accounting import flops_per_token
from model.config import require, require_positive
from model.errors import ConfigError
from sweeps.plan import Plan, PlannedRun, as_planned
from sweeps.status import OPEN
from sweeps.store import Store

FIRST_RUNS = 2 * len(LossSurface.PARAMETERS)
"""The cheapest runs, made before any law can choose."""
QUICK = FitSettings(starts=400, replicates=200)


@dataclass(frozen=True, kw_only=True)
class DesignRules:
    """What a design aims at, and when it is done."""

    ahead: float
    """The target is the optimum at so many times the compute of the grid's largest run."""
    tolerance: float
    """Stop when the half width of the forecast's interval is below this share of the loss."""
    batches: int
    """The budget is spent in so many parts; the law is fitted again after each."""

    def __post_init__(self) -> None:
        require(self.ahead >= 1, f"ahead must be >= 1, got {self.ahead}")
        require(
            0 <= self.tolerance < 1,
            f"tolerance is a share of the loss, 0 to 1, got {self.tolerance}",
        )
        require_positive(batches=self.batches)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Runs to make before the law is fitted again; none when the design has ended."""

    runs: tuple[PlannedRun, ...]
    why: str
    """Of this choice, or of the end."""


def next_batch(
    plan: Plan, store: Store, rules: DesignRules, budget: float, *, whole: float | None = None
) -> Batch:
    """What to run now.

    Args:
        plan: the grid.
        store: what was measured so far.
        rules: of the design.
        budget: training FLOPs that are left for it.
        whole: those it had at its beginning, which are cut into parts; None: the same.

    Raises:
        ConfigError: the sweep has axes or shared trunks, whose runs are no single choices.
    """
    if any(run.variant or run.spec.trunk or run.spec.role == "trunk" for run in plan.runs):
        raise ConfigError(
            "design=next chooses single runs of one ladder; this sweep has axes, or a schedule "
            "whose runs share trunks. Use design=grid for it"
        )
    by_cost = sorted(plan.runs, key=lambda run: run.cost.train_flops)
    left = [run for run in by_cost if store.state(run.run_id).status in OPEN]
    records = [as_planned(record, run) for run in by_cost if (record := store.record(run.run_id))]
    good = tuple(record for record in records if record.status == "done")
    if not left:
        return Batch(runs=(), why="every run of the grid is made")
    if len(good) < FIRST_RUNS:
        few = _affordable(left[: FIRST_RUNS - len(good)], budget)
        why = f"the {len(few)} cheapest, to have {FIRST_RUNS} for a first law"
        return Batch(runs=few, why=why if few else "the budget is spent")
    points, _ = points_from_records(RecordSet(records=good, excluded=()))
    check_spread(points)
    fit, noise = fit_surface(points, QUICK), noise_floor(points)
    target = _target(fit, points, rules.ahead * max(run.cost.train_flops for run in plan.runs))
    design = next_runs(
        fit,
        (points.array("size"), points.array("tokens")),
        [Candidate(label=run.run_id, x=_place(run), cost=run.cost.train_flops) for run in left],
        target,
        budget,
        tolerance=rules.tolerance,
        seeds_sd=noise.sd if noise else 0.0,
    )
    named = {run.run_id: run for run in left}
    chosen, spent = [], 0.0
    for step in design.runs:
        chosen.append(named[step.label])
        spent += step.cost
        if spent >= (whole or budget) / rules.batches:
            break
    if not chosen:
        return Batch(runs=(), why=design.stop)
    promised = design.runs[len(chosen) - 1].half_width
    assert isinstance(fit.law, LossSurface)
    at = float(fit.law.compute(*target))
    why = (
        f"half width of the forecast at {at:.3g} FLOPs {design.before:.2%} now, "
        f"{promised:.2%} with {'it' if len(chosen) == 1 else 'them'}"
    )
    if 0 < rules.tolerance < design.floor:
        why += (
            f"; the tolerance of {rules.tolerance:.2%} lies below the {design.floor:.2%} that one "
            "run's own noise leaves, and no run reaches it"
        )
    return Batch(runs=tuple(chosen), why=why)


def _target(fit: Fit, points: Points, flops: float) -> tuple[float, float]:
    """Size and tokens of least loss at ``flops``; without an optimum both grow alike."""
    law = fit.law
    assert isinstance(law, LossSurface)
    if law.has_optimum:
        best = law.optimum(flops)
        return best.size, best.tokens
    size, tokens = max(points.size), max(points.tokens)
    growth = (flops / (size * tokens)) ** 0.5
    return size * growth, tokens * growth


def _place(run: PlannedRun) -> tuple[float, float]:
    train = run.spec.train
    return flops_per_token(run.spec.model, train.sequence_length).house, float(train.tokens)


def _affordable(runs: list[PlannedRun], budget: float) -> tuple[PlannedRun, ...]:
    spent, chosen = 0.0, []
    for run in runs:
        if spent + run.cost.train_flops <= budget:
            chosen.append(run)
            spent += run.cost.train_flops
    return tuple(chosen)
