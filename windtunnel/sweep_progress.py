"""A sweep on the screen while it runs: one bar over its work, a line for every run that ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from analysis.wording import brief, counted
from sweeps.attempt import Progress as RunProgress
from sweeps.attempt import attempt_dir
from sweeps.events import Event
from sweeps.plan import Plan
from sweeps.store import Store
from windtunnel.console import Progress, duration
from windtunnel.folding import Folded
from windtunnel.sweep_tables import quoted, run_label


class SweepProgress(Progress):
    """Draws events; the unit of its bar is the plan's estimated seconds on one worker."""

    def __init__(
        self,
        console: Console,
        plan: Plan,
        store: Store,
        *,
        expected_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``expected_s`` is how long what is missing should take; without it, one worker's time."""
        self._store = store
        self._cost_s = {run.run_id: run.cost.wall_s for run in plan.runs}
        self._frac: dict[str, float] = {}
        self._running: dict[str, RunProgress | None] = {}
        self._ended = self._failed = 0
        super().__init__(
            console,
            plan.name,
            plan.worker_s,
            expected_s=plan.worker_s if expected_s is None else expected_s,
            clock=clock,
        )

    def show(self, event: Event) -> None:
        """Take in one event of `run_sweep`."""
        name = event.run.run_id
        if event.kind == "skipped":
            self._ended += 1
            self._frac[name] = 1.0
            self.already(self._done_s())
            return
        if event.kind == "started":
            self._running[name] = None
        elif event.kind == "waiting":
            self.line(Folded(f"waiting   {event.reason}").plain)
        elif event.kind == "unmirrored":
            self.line(Folded(f"mirror    {run_label(event.run)}: {event.reason}").plain)
        elif event.kind == "progress":
            assert event.progress is not None
            if event.attempt > 1 and self._running.get(name) is None:
                # What earlier attempts left was not done now, and what they lost was.
                there = event.progress.frac - self._frac.get(name, 0.0)
                self.found(self._cost_s[name] * there)
            self._running[name] = event.progress
            self._frac[name] = event.progress.frac
        else:
            self._running.pop(name, None)
            self._line_for(event)
        if event.kind in ("finished", "diverged", "failed"):
            self._ended += 1
            self._failed += event.kind != "finished"
            self._frac[name] = 1.0
        self.advance_to(self._done_s(), self._note())

    def _line_for(self, event: Event) -> None:
        label, reason = run_label(event.run), brief(event.reason)
        where = " by another driver" if event.elsewhere else ""
        if event.kind == "finished":
            record = self._store.record(event.run.run_id)
            # Its own time, as the status has it: it may have waited for hours in a cluster's queue.
            measured = (
                f": loss {record.heldout_nats:.4f} nats, {duration(record.wall_s)}"
                if record
                else ""
            )
            self.line(f"done      {label}{measured}{where}")
        elif event.kind == "failed":
            self.line(Folded(f"FAILED    {label}: {reason}").plain)
            for line in quoted(event.log_tail):
                self.line(line)
        elif event.kind == "diverged":
            self.line(Folded(f"DIVERGED  {label}: {reason}").plain)
        elif event.kind == "interrupted":
            saved = attempt_dir(self._store.run_dir(event.run.run_id), event.attempt)
            there = any((saved / "checkpoints").glob("*"))
            where = "its last checkpoint" if there else "its beginning: it had saved none yet"
            self.line(Folded(f"again     {label}: {reason}; it is tried again from {where}").plain)
        elif event.kind == "stopped":
            begun = event.progress is not None or event.attempt > 1
            then = "it resumes from its checkpoint" if begun else "it begins"
            self.line(f"stopped   {label}: {then} next time")

    def _done_s(self) -> float:
        return sum(self._cost_s[name] * frac for name, frac in self._frac.items())

    def _note(self) -> str:
        speed = sum(progress.tokens_per_s for progress in self._running.values() if progress)
        pace = f", {speed:,.0f} tokens/s" if speed else ""
        total = len(self._cost_s)
        failed = f", {self._failed} failed" if self._failed else ""
        runs = counted(total, "run", "runs")
        begun = sum(progress is not None for progress in self._running.values())
        handed_in = len(self._running) - begun
        to_start = f", {handed_in} to start" if handed_in else ""
        return f"{self._ended} of {runs}{failed}, {begun} running{to_start}{pace}"
