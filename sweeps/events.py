"""What the driver tells while a sweep runs; the command line draws it, a test collects it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sweeps.attempt import Progress
from sweeps.plan import PlannedRun

EventKind = Literal[
    "skipped",  # nothing to do: done, or failed or diverged before and not to be tried again
    "started",
    "waiting",  # it was handed in and has not begun; ``reason`` says what it waits for
    "unmirrored",  # who mirrors its metrics gets no more of them, for ``reason``; told once
    "progress",
    "finished",  # it has a record now
    "diverged",
    "failed",  # the run's own fault; the rest go on
    "interrupted",  # killed, pre-empted, or the store was away; it is tried again
    "stopped",  # the driver was asked to stop; the run can be resumed
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened to one run."""

    kind: EventKind
    run: PlannedRun
    attempt: int = 0
    progress: Progress | None = None
    reason: str = ""
    log_tail: str = ""
    """Last lines of the log, of a failed run."""
    elsewhere: bool = False
    """Another driver's worker did it."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """How a sweep stands when its driver ends: every run of the plan is in one of the lists."""

    finished: tuple[str, ...] = ()
    """Run ids that were done in this session."""
    skipped: tuple[str, ...] = ()
    """Done before."""
    diverged: dict[str, str] = field(default_factory=dict)
    """Run id to reason; likewise below. From before, too."""
    failed: dict[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
    """Not started, or interrupted: the same command goes on with them."""
    stopped: str = ""
    """Why the driver ended before the work did: a signal, the budget; empty otherwise."""

    @property
    def is_complete(self) -> bool:
        """Whether every run has a record with a loss."""
        return not (self.diverged or self.failed or self.unfinished)
