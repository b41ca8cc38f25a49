"""What became of every run in a session, filed while it goes on and told as it happens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from sweeps.events import Event, EventKind, SweepResult
from sweeps.plan import Plan, PlannedRun
from sweeps.store import RunState, Store


class Account:
    """Files each run under how it ended and tells ``on_event``."""

    def __init__(self, store: Store, on_event: Callable[[Event], None]) -> None:
        self._store = store
        self._tell = on_event
        self._finished: list[str] = []
        self._skipped: list[str] = []
        self._diverged: dict[str, str] = {}
        self._left: set[str] = set()
        self.failed: dict[str, str] = {}
        """Run id to reason."""
        self.stopped = ""
        """Why the session ends before its work does."""

    def skip(self, run: PlannedRun, state: RunState, retry: Collection[str]) -> bool:
        """File a run that was over before the session and is not to be tried again."""
        if state.status == "done":
            self._skipped.append(run.run_id)
        elif state.status == "diverged" and "diverged" not in retry:
            self._diverged[run.run_id] = state.reason
        elif state.status == "failed" and "failed" not in retry:
            self.failed[run.run_id] = state.reason
        else:
            return False
        self._tell(Event(kind="skipped", run=run, attempt=state.attempt, reason=state.reason))
        return True

    def settle(self, run: PlannedRun, state: RunState, *, elsewhere: bool) -> None:
        """File a run that is over now."""
        if state.status == "failed":
            log_tail = self._store.log_tail(run.run_id)
            self.fail(run, state.reason, state.attempt, log_tail=log_tail, elsewhere=elsewhere)
            return
        kind: EventKind = "diverged"
        if state.status == "done":
            kind = "finished"
            self._finished.append(run.run_id)
        else:
            self._diverged[run.run_id] = state.reason
        attempt, reason = state.attempt, state.reason
        self._tell(Event(kind=kind, run=run, attempt=attempt, reason=reason, elsewhere=elsewhere))

    def fail(
        self,
        run: PlannedRun,
        reason: str,
        attempt: int,
        *,
        log_tail: str = "",
        elsewhere: bool = False,
    ) -> None:
        """File a run that can't be had in this session."""
        self.failed[run.run_id] = reason
        self._tell(
            Event(
                kind="failed",
                run=run,
                attempt=attempt,
                reason=reason,
                log_tail=log_tail,
                elsewhere=elsewhere,
            )
        )

    def leave(self, run: PlannedRun, stopped: str = "") -> None:
        """File a run that is left for a later session, and why this one ends."""
        self._left.add(run.run_id)
        self.stopped = stopped or self.stopped

    def is_left(self, run_id: str) -> bool:
        """Whether the run is left for a later session."""
        return run_id in self._left

    def result(self, plan: Plan, waiting: Iterable[PlannedRun]) -> SweepResult:
        """How the sweep stands, with the runs that still wait."""
        left = {run.run_id for run in waiting} | self._left
        return SweepResult(
            finished=tuple(self._finished),
            skipped=tuple(self._skipped),
            diverged=self._diverged,
            failed=self.failed,
            unfinished=tuple(run.run_id for run in plan.runs if run.run_id in left),
            stopped=self.stopped,
        )
