"""Drive a plan to its end: what is missing, each run once, as many at a time as there are slots.

The driver holds no state that a kill could lose: what is done, failed or half-way is read from the
store, so the same command after any accident goes on where things stand. Several drivers may work
on one store; a run that another one holds is watched until it is over.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import ConfigError, RunFailed
from model.training.mirrors import mirror_failure
from sweeps.account import Account
from sweeps.attempt import Progress, attempt_dir, newest_attempt, read_heartbeat, read_outcome
from sweeps.budget import Budget, Spending
from sweeps.events import Event, EventKind, SweepResult
from sweeps.executors.base import Executor, Handle
from sweeps.executors.shared import SharedHandle
from sweeps.liveness import LEASE_S, Watch
from sweeps.packing import ALONE, Packing, write_company
from sweeps.plan import Plan, PlannedRun
from sweeps.queue import Queue
from sweeps.retries import Retries
from sweeps.stop_signals import stop_on_signals
from sweeps.store import RunState, Store
from sweeps.trouble import (
    EXIT_DISK_FULL,
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_USAGE,
    disk_full,
    require_ours,
    store_trouble,
)
from sweeps.trunks import has_snapshots
from sweeps.waiting import Waiting

POLL_S = 0.05
"""Pause between looks at the workers."""
PROGRESS_S = 0.5
"""Pause between looks at a run's heartbeat."""
GRACE_S = 10.0
"""Seconds a worker has to stop by itself."""


class DiskFull(ConfigError):
    """No space where the runs are kept; nothing measured is lost."""


@dataclass
class _Active:
    """A run whose worker this driver started; several share one where they are packed."""

    run: PlannedRun
    handle: Handle
    attempt: int
    is_packed: bool = False
    looked_at: float = 0.0
    progress: Progress | None = None


def run_sweep(
    plan: Plan,
    store: Store,
    executor: Executor,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    retry: Collection[Literal["failed", "diverged"]] = (),
    budget: Budget | None = None,
    packing: Packing = ALONE,
    lease_s: float = LEASE_S,
) -> SweepResult:
    """Run what the plan still needs.

    Args:
        plan: runs in the order they are to start.
        store: where their folders are.
        executor: what starts workers; closed at the end.
        on_event: called in this thread for everything that happens.
        retry: also try again what ended as ``failed`` (from its checkpoint) or ``diverged`` (from
            the start) in an earlier session.
        budget: what this session may use.
        packing: which runs one worker trains together.
        lease_s: seconds without a sign of life before another machine's run is taken over.

    Raises:
        DiskFull: the store has no space left; running workers were stopped.
        RunFailed: a worker ended before it could begin, as every other would.
    """
    driver = _Driver(plan, store, executor, on_event, retry, budget or Budget(), packing, lease_s)
    with stop_on_signals(driver.stop):
        try:
            return driver.drive()
        finally:
            driver.end_workers()
            executor.close()


class _Driver:
    """The loop's state; all of it could be read again from the store."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        executor: Executor,
        on_event: Callable[[Event], None],
        retry: Collection[str],
        budget: Budget,
        packing: Packing,
        lease_s: float,
    ) -> None:
        self.stop = threading.Event()
        self._plan = plan
        self._store = store
        self._executor = executor
        self._tell = on_event
        self._retry = retry
        self._packing = packing
        self._watch = Watch(lease_s)
        self._planned = {run.run_id for run in plan.runs}
        self._queue = Queue(plan.runs)
        self._active: list[_Active] = []
        self._account = Account(store, on_event)
        self._spending = Spending(budget)
        self._retries = Retries()
        self._waiting = Waiting(executor)
        self._attempt_over: dict[str, int] = {}
        self._elsewhere: set[str] = set()
        self._mirror_has_failed = False

    def drive(self) -> SweepResult:
        """Until every run is over, or there is a reason to stop."""
        for run in self._plan.runs:
            state = self._store.state(run.run_id)
            if not self._account.skip(run, state, self._retry):
                self._note(run, state)
                self._queue.put(run)
        while (self._queue or self._active) and not self.stop.is_set():
            self._fill_slots()
            for active in list(self._active):
                self._look_at(active)
            self._tell_waiting()
            if self._queue or self._active:
                self.stop.wait(POLL_S)
        if self.stop.is_set():
            self._account.stopped = "asked to stop"
            self.end_workers()
        return self._account.result(self._plan, waiting=self._queue)

    def _fill_slots(self) -> None:
        """Start due runs while slots are free; look at those that another driver holds."""
        while self._busy_slots() < self._executor.slots and not self.stop.is_set():
            run = self._queue.pop_due()
            if run is None:
                return
            state = self._store.state(run.run_id, self._watch)
            is_new = state.attempt > self._attempt_over[run.run_id]
            if state.status == "running":
                self._show_elsewhere(run, state)
                self._queue.put(run, PROGRESS_S)
            elif is_new and state.status in ("done", "failed", "diverged"):
                self._account.settle(run, state, elsewhere=True)
            elif reason := self._missing_trunk(run):
                self._account.fail(run, reason, state.attempt)
            elif self._waits_for_trunk(run):
                self._queue.put(run, PROGRESS_S)
            elif self._account.is_left(run.spec.trunk):
                self._account.leave(run)
            elif reason := self._spending.forbids(run, self._under_way()):
                self._account.leave(run, stopped=reason)
            else:
                self._start(run, state)

    def _note(self, run: PlannedRun, state: RunState) -> None:
        """Remember the newest attempt that is over: how a later one ends is news."""
        self._attempt_over[run.run_id] = state.attempt - (state.status == "running")

    def _busy_slots(self) -> int:
        return len({id(active.handle) for active in self._active})

    def _under_way(self) -> list[PlannedRun]:
        return [active.run for active in self._active]

    def _start(self, run: PlannedRun, state: RunState) -> None:
        """Start a worker on the run, and on those that go with it."""
        pack = [(run, state), *self._company(run)]
        try:
            folders = [self._store.create(member.spec) for member, _ in pack]
            for folder in folders:
                require_ours(folder)
            others = [(member.run_id, found.attempt) for member, found in pack[1:]]
            write_company(folders[0], others)
            # Before it is handed in: an executor may do the work there and then.
            for member, found in pack:
                self._tell(Event(kind="started", run=member, attempt=found.attempt + 1))
            handle = SharedHandle(self._executor.submit(folders[0], state.attempt))
        except PermissionError as error:
            # The run's folder is another user's; the others' may be ours.
            for member, found in pack:
                self._account.fail(member, f"{error.filename}: {error.strerror}", found.attempt)
            return
        except OSError as error:
            trouble = store_trouble(self._store.root, error)
            if trouble is None:
                raise
            for member, found in pack:
                self._try_again(member, found, trouble.reason, trouble.exit_code)
            return
        for member, found in pack:
            self._elsewhere.discard(member.run_id)
            attempt = found.attempt + 1
            active = _Active(run=member, handle=handle, attempt=attempt, is_packed=len(pack) > 1)
            self._active.append(active)

    def _company(self, run: PlannedRun) -> list[tuple[PlannedRun, RunState]]:
        """The due runs that are trained together with ``run``, taken out of the queue.

        A run that was in trouble goes alone: then one that can't go with others fails by itself.
        """
        key = self._packing.key(run.spec)
        if key is None or self._retries.tried(run.run_id):
            return []
        alike = [
            other
            for other in self._queue.due()
            if not self._retries.tried(other.run_id) and self._packing.key(other.spec) == key
        ]
        free = self._executor.slots - self._busy_slots()
        size = min(self._packing.size_for(run.spec), math.ceil((1 + len(alike)) / free))
        under_way = [*self._under_way(), run]
        company: list[tuple[PlannedRun, RunState]] = []
        for other in alike:
            if len(company) + 1 >= size:
                break
            state = self._store.state(other.run_id, self._watch)
            is_free = state.status in ("planned", "interrupted")
            if is_free and not self._spending.forbids(other, under_way):
                company.append((other, state))
                under_way.append(other)
        self._queue.remove([member for member, _ in company])
        return company

    def _look_at(self, active: _Active) -> None:
        """Progress of a running worker; what became of one that ended."""
        exit_code = active.handle.poll()
        run = active.run
        if exit_code is None:
            now = time.monotonic()
            if now - active.looked_at >= PROGRESS_S:
                active.looked_at = now
                self._follow(active)
                self._look_at_mirror(active)
                folder = attempt_dir(self._store.run_dir(run.run_id), active.attempt)
                heartbeat = read_heartbeat(folder)
                if heartbeat and self._watch.is_stale(folder, heartbeat.beat):
                    self._unstick(active, folder)
                    return
                if heartbeat and heartbeat.progress and heartbeat.progress != active.progress:
                    active.progress = heartbeat.progress
                    self._tell_progress(active)
            return
        self._active.remove(active)
        self._look_at_mirror(active)
        state = self._store.state(run.run_id, self._watch)
        self._note(run, state)
        has_claimed = state.attempt >= active.attempt
        if has_claimed and state.status in ("done", "failed", "diverged"):
            if exit_code != EXIT_HELD:
                self._spending.add(run)
            self._account.settle(run, state, elsewhere=exit_code == EXIT_HELD)
        elif state.status == "running":
            self._queue.put(run, PROGRESS_S)  # another driver was quicker
        elif not has_claimed and active.is_packed:
            self._try_again(run, state, "it was left out of its pack", exit_code)
        elif not has_claimed and exit_code == EXIT_FAILED:
            # It ended before it could claim the run: a broken installation, not a broken run.
            logs = [self._store.log_tail(r.run_id) for r in (run, *(a.run for a in self._active))]
            raise RunFailed(
                run.run_id, "workers do not start here", next(filter(None, logs), "no log")
            )
        elif not has_claimed and exit_code == EXIT_USAGE:
            log_tail = self._store.log_tail(run.run_id)
            reason = log_tail.splitlines()[-1] if log_tail else "its spec was refused"
            self._account.fail(run, reason, state.attempt, log_tail=log_tail)
        else:
            if active.progress:
                self._retries.reached(run.run_id, active.progress.step)
            reason = state.reason or f"its worker ended with exit code {exit_code}"
            self._try_again(run, state, reason, exit_code)

    def _look_at_mirror(self, active: _Active) -> None:
        """The first run whose mirror failed is told; the rest would only say the same."""
        if self._mirror_has_failed:
            return
        run, attempt = active.run, active.attempt
        if why := mirror_failure(attempt_dir(self._store.run_dir(run.run_id), attempt)):
            self._mirror_has_failed = True
            self._tell(Event(kind="unmirrored", run=run, attempt=attempt, reason=why))

    def _tell_waiting(self) -> None:
        """What the runs wait for that a cluster has taken in, while it has begun none of them."""
        if why := self._waiting.news(self._all_wait):
            first = self._active[0]
            self._tell(Event(kind="waiting", run=first.run, attempt=first.attempt, reason=why))

    def _all_wait(self) -> bool:
        runs = [(self._store.run_dir(active.run.run_id), active.attempt) for active in self._active]
        return bool(runs) and all(newest_attempt(folder) < attempt for folder, attempt in runs)

    def _follow(self, active: _Active) -> None:
        """A cluster that pre-empted and requeued the job goes on in an attempt of its own."""
        newest = newest_attempt(self._store.run_dir(active.run.run_id))
        active.attempt = max(active.attempt, newest)

    def _unstick(self, active: _Active, folder: Path) -> None:
        """A worker whose attempt beats no more although its place is not free."""
        if read_outcome(folder) is None:
            active.handle.kill()  # frozen: its place is needed, its checkpoints are kept

    def _try_again(self, run: PlannedRun, state: RunState, reason: str, exit_code: int) -> None:
        """A run that was ended from outside: again, a few times, with growing pauses."""
        if exit_code == EXIT_DISK_FULL:
            raise DiskFull(disk_full(self._store.root))
        tried = self._retries.tried(run.run_id)
        pause_s = self._retries.next_pause_s(run.run_id)
        if pause_s is None:
            log_tail = self._store.log_tail(run.run_id)
            reason = f"{reason}, {tried + 1} times"
            self._account.fail(run, reason, state.attempt, log_tail=log_tail)
            return
        self._queue.put(run, pause_s)
        self._tell(Event(kind="interrupted", run=run, attempt=state.attempt, reason=reason))

    def _show_elsewhere(self, run: PlannedRun, state: RunState) -> None:
        attempt = state.attempt
        if run.run_id not in self._elsewhere:
            self._elsewhere.add(run.run_id)
            self._tell(Event(kind="started", run=run, attempt=attempt, elsewhere=True))
        if state.heartbeat and (progress := state.heartbeat.progress):
            self._tell(
                Event(kind="progress", run=run, attempt=attempt, progress=progress, elsewhere=True)
            )

    def _missing_trunk(self, run: PlannedRun) -> str:
        """Why a readout can't be had in this session; empty if it can."""
        trunk = run.spec.trunk
        reason = self._account.failed.get(trunk)
        if reason is not None and not has_snapshots(self._store, run.spec):
            return f"its trunk {trunk} failed: {reason}"
        return ""

    def _waits_for_trunk(self, run: PlannedRun) -> bool:
        """Whether what a readout begins with is still being trained."""
        trunk = run.spec.trunk
        if trunk not in self._planned or self._account.is_left(trunk):
            return False  # left out: what a trunk has not trained, the run trains itself
        is_over = self._store.state(trunk, self._watch).status in ("done", "diverged")
        return not (is_over or has_snapshots(self._store, run.spec))

    def end_workers(self) -> None:
        """Stop what still runs: politely, then for good."""
        for active in self._active:
            active.handle.cancel()
        end = time.monotonic() + GRACE_S
        for active in self._active:
            while active.handle.poll() is None and time.monotonic() < end:
                time.sleep(POLL_S)
            active.handle.kill()
            self._account.leave(active.run)
            self._tell_progress(active, "stopped")
        self._active.clear()

    def _tell_progress(self, active: _Active, kind: EventKind = "progress") -> None:
        attempt, progress = active.attempt, active.progress
        self._tell(Event(kind=kind, run=active.run, attempt=attempt, progress=progress))
