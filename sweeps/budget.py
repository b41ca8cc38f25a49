"""What a session may use, and what it has used so far."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.plan import PlannedRun


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a session may use; runs that would go beyond it are left for the next one."""

    train_flops: float | None = None
    hours: float | None = None


class Spending:
    """A session's account against its budget; its hours begin here."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._spent_flops = 0.0
        self._started = time.monotonic()

    def add(self, run: PlannedRun) -> None:
        """Book a run that this session's workers ended."""
        self._spent_flops += run.cost.own_flops

    def forbids(self, run: PlannedRun, under_way: Iterable[PlannedRun]) -> str:
        """Why the budget has no room for ``run`` beside those under way; empty if it has."""
        flops, hours = self._budget.train_flops, self._budget.hours
        if flops is not None:
            running = sum(other.cost.own_flops for other in under_way)
            if self._spent_flops + running + run.cost.own_flops > flops:
                return f"the budget of {flops:.3g} training FLOPs is used up"
        if hours is not None:
            spent_s = time.monotonic() - self._started
            if spent_s + run.cost.wall_s > 3600 * hours:
                return f"the budget of {hours:g} hours is used up"
        return ""
