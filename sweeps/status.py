"""How a sweep stands, read from the folders of its runs: quick, and true after any accident."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sweeps.index import OutcomeIndex
from sweeps.plan import Plan, PlannedRun
from sweeps.store import RunState, Store

OPEN = ("planned", "running", "interrupted")


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One run of the plan and its state now."""

    run: PlannedRun
    state: RunState

    @property
    def done_frac(self) -> float:
        """Share of its steps that are done."""
        if self.state.status == "done":
            return 1.0
        progress = self.state.heartbeat.progress if self.state.heartbeat else None
        return progress.frac if progress else self.state.done_frac

    @property
    def left_s(self) -> float:
        """Seconds of one worker still to come: by its own speed where it has one, else planned."""
        if self.state.status not in OPEN:
            return 0.0
        if self.state.status == "running" and self.state.heartbeat:
            progress = self.state.heartbeat.progress
            if progress and progress.tokens_per_s > 0:
                tokens = self.run.spec.train.tokens * (1 - self.done_frac)
                return tokens / progress.tokens_per_s
        return self.run.cost.wall_s * (1 - self.done_frac)


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """All runs of a plan, in its order."""

    runs: tuple[RunReport, ...]

    @property
    def counts(self) -> Counter[str]:
        """Runs by status; the sum is the number of runs in the plan."""
        return Counter(report.state.status for report in self.runs)

    @property
    def is_complete(self) -> bool:
        """Whether every run is done."""
        return self.counts["done"] == len(self.runs)

    @property
    def train_flops_done(self) -> float:
        """Training FLOPs of what is done, with the shares of what is half-way or ended there."""
        return sum(report.run.cost.own_flops * report.done_frac for report in self.runs)

    @property
    def train_flops(self) -> float:
        """Training FLOPs of the whole plan."""
        return sum(report.run.cost.own_flops for report in self.runs)

    def left_s(self, slots: int) -> float:
        """Seconds to the end with ``slots`` workers, at least the longest run's."""
        left = [report.left_s for report in self.runs]
        return max([sum(left) / slots, *left], default=0.0)

    def with_status(self, *statuses: str) -> tuple[RunReport, ...]:
        """The runs in one of these states."""
        return tuple(report for report in self.runs if report.state.status in statuses)


def sweep_status(plan: Plan, store: Store) -> SweepStatus:
    """Look at every run of ``plan``; log tails are read only when asked for (Store.log_tail)."""
    index = OutcomeIndex(store.root)
    runs = tuple(
        RunReport(run=run, state=store.state(run.run_id, outcome_of=index.outcome))
        for run in plan.runs
    )
    index.save()
    return SweepStatus(runs=runs)
