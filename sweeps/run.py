"""Drive a plan to its end: what is missing, each run once, as many at a time as there are slots.

The driver holds no state that a kill could lose: what is done, failed or half-way is read from the
store, so the same command after any accident goes on where things stand. Several drivers may work
on one store; a run that another one holds is watched until it is over.
"""

from __future__ import annotations

import heapq
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import ConfigError, RunFailed
from sweeps.attempt import (
    Progress,
    attempt_dir,
    newest_attempt,
    read_heartbeat,
    read_outcome,
)
from sweeps.events import Event, EventKind, SweepResult
from sweeps.executors.base import Executor, Handle
from sweeps.liveness import LEASE_S, Watch
from sweeps.packing import ALONE, Packing, write_company
from sweeps.plan import Plan, PlannedRun
from sweeps.store import RunState, Store
from sweeps.trouble import (
    EXIT_DISK_FULL,
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_USAGE,
    disk_full,
    store_trouble,
)
from sweeps.trunks import has_snapshots

POLL_S = 0.05
"""Pause between looks at the workers."""
PROGRESS_S = 0.5
"""Pause between looks at a run's heartbeat."""
GRACE_S = 10.0
"""Seconds a worker has to stop by itself."""
BACKOFF_S = (1.0, 4.0, 16.0, 64.0)
"""Pauses before a run is tried again after its worker was killed or the store was away: as often as
there are pauses without getting any further. Together they outlast a minute without the store."""


class DiskFull(ConfigError):
    """No space where the runs are kept; nothing measured is lost."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a session may use; runs that would go beyond it are left for the next one."""

    train_flops: float | None = None
    hours: float | None = None


class _Together:
    """The worker of several runs; each of them is told the same end, however late it asks."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        # Asked no more once it ended: the executor may have given its place to another by then.
        if self._exit_code is None:
            self._exit_code = self._handle.poll()
        return self._exit_code

    def cancel(self) -> None:
        if self.poll() is None:
            self._handle.cancel()

    def kill(self) -> None:
        if self.poll() is None:
            self._handle.kill()


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
    with _stop_on_signals(driver.stop):
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
        self._on_event = on_event
        self._retry = retry
        self._budget = budget
        self._packing = packing
        self._watch = Watch(lease_s)
        self._active: list[_Active] = []
        # (time to look at it, place in the plan, run): due runs come out in the plan's order.
        self._queue: list[tuple[float, int, PlannedRun]] = []
        self._place = {run.run_id: place for place, run in enumerate(plan.runs)}
        self._retries: dict[str, int] = {}
        self._attempt_seen: dict[str, int] = {}
        self._elsewhere: set[str] = set()
        self._reached: dict[str, int] = {}
        self._spent_flops = 0.0
        self._started = time.monotonic()
        self._finished: list[str] = []
        self._skipped: list[str] = []
        self._diverged: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._left: list[str] = []
        self._stopped = ""

    def drive(self) -> SweepResult:
        """Until every run is over, or there is a reason to stop."""
        for run in self._plan.runs:
            self._sort(run)
        while (self._queue or self._active) and not self.stop.is_set():
            self._fill_slots()
            for active in list(self._active):
                self._look_at(active)
            if self._queue or self._active:
                self.stop.wait(POLL_S)
        if self.stop.is_set():
            self._stopped = "asked to stop"
            self.end_workers()
        left = {run.run_id for _, _, run in self._queue} | set(self._left)
        return SweepResult(
            finished=tuple(self._finished),
            skipped=tuple(self._skipped),
            diverged=self._diverged,
            failed=self._failed,
            unfinished=tuple(run.run_id for run in self._plan.runs if run.run_id in left),
            stopped=self._stopped,
        )

    def _sort(self, run: PlannedRun) -> None:
        """Skip a run that is over, queue one that is not."""
        state = self._store.state(run.run_id)
        if state.status == "done":
            self._skipped.append(run.run_id)
        elif state.status == "diverged" and "diverged" not in self._retry:
            self._diverged[run.run_id] = state.reason
        elif state.status == "failed" and "failed" not in self._retry:
            self._failed[run.run_id] = state.reason
        else:
            self._attempt_seen[run.run_id] = state.attempt
            self._enqueue(run)
            return
        self._tell("skipped", run, attempt=state.attempt, reason=state.reason)

    def _enqueue(self, run: PlannedRun, wait_s: float = 0.0) -> None:
        # Due runs share the time 0, so that among them the plan's order decides.
        due = time.monotonic() + wait_s if wait_s else 0.0
        heapq.heappush(self._queue, (due, self._place[run.run_id], run))

    def _fill_slots(self) -> None:
        """Start due runs while slots are free; look at those that another driver holds."""
        while self._queue and self._busy_slots() < self._executor.slots:
            due, _, run = self._queue[0]
            if due > time.monotonic():
                return
            heapq.heappop(self._queue)
            state = self._store.state(run.run_id, self._watch)
            is_new = state.attempt > self._attempt_seen[run.run_id]
            if state.status == "running":
                self._show_elsewhere(run, state)
                self._enqueue(run, PROGRESS_S)
            elif is_new and state.status in ("done", "failed", "diverged"):
                self._settle(run, state, elsewhere=True)
            elif reason := self._missing_trunk(run):
                self._failed[run.run_id] = reason
                self._tell("failed", run, attempt=state.attempt, reason=reason)
            elif self._waits_for_trunk(run):
                self._enqueue(run, PROGRESS_S)
            elif run.spec.trunk in self._left:
                self._left.append(run.run_id)
            elif reason := self._beyond_budget(run):
                self._left.append(run.run_id)
                self._stopped = reason
            else:
                self._start(run, state)
            if self.stop.is_set():
                return

    def _busy_slots(self) -> int:
        return len({id(active.handle) for active in self._active})

    def _start(self, run: PlannedRun, state: RunState) -> None:
        """Start a worker on the run, and on those that go with it."""
        pack = [(run, state), *self._company(run)]
        try:
            folders = [self._store.create(member.spec) for member, _ in pack]
            others = [(member.run_id, found.attempt) for member, found in pack[1:]]
            write_company(folders[0], others)
            handle = _Together(self._executor.submit(folders[0], state.attempt))
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
            self._tell("started", member, attempt=attempt)

    def _company(self, run: PlannedRun) -> list[tuple[PlannedRun, RunState]]:
        """The due runs that are trained together with ``run``, taken out of the queue.

        A run that was in trouble goes alone: then one that can't go with others fails by itself.
        """
        key = self._packing.key(run.spec)
        if key is None or run.run_id in self._retries:
            return []
        now = time.monotonic()
        alike = [
            entry
            for entry in sorted(self._queue, key=lambda entry: entry[1])
            if entry[0] <= now
            and entry[2].run_id not in self._retries
            and self._packing.key(entry[2].spec) == key
        ]
        free = self._executor.slots - self._busy_slots()
        size = min(self._packing.size_for(run.spec), math.ceil((1 + len(alike)) / free))
        company: list[tuple[PlannedRun, RunState]] = []
        for entry in alike:
            if len(company) + 1 >= size:
                break
            other = entry[2]
            state = self._store.state(other.run_id, self._watch)
            together = [run, *(member for member, _ in company)]
            if state.status not in ("planned", "interrupted") or self._beyond_budget(
                other, besides=together
            ):
                continue
            self._queue.remove(entry)
            company.append((other, state))
        heapq.heapify(self._queue)
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
                folder = attempt_dir(self._store.run_dir(run.run_id), active.attempt)
                heartbeat = read_heartbeat(folder)
                if heartbeat and self._watch.is_stale(folder, heartbeat.beat):
                    self._unstick(active, folder)
                    return
                if heartbeat and heartbeat.progress and heartbeat.progress != active.progress:
                    active.progress = heartbeat.progress
                    self._tell("progress", run, attempt=active.attempt, progress=active.progress)
            return
        self._active.remove(active)
        state = self._store.state(run.run_id, self._watch)
        self._attempt_seen[run.run_id] = state.attempt
        has_claimed = state.attempt >= active.attempt
        if has_claimed and state.status in ("done", "failed", "diverged"):
            self._settle(run, state, elsewhere=exit_code == EXIT_HELD)
        elif state.status == "running":
            self._enqueue(run, PROGRESS_S)  # another driver was quicker
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
            self._failed[run.run_id] = reason
            self._tell("failed", run, reason=reason, log_tail=log_tail)
        else:
            if active.progress and active.progress.step > self._reached.get(run.run_id, 0):
                self._reached[run.run_id] = active.progress.step
                self._retries.pop(run.run_id, None)  # it gets on, however often it is ended
            reason = state.reason or f"its worker ended with exit code {exit_code}"
            self._try_again(run, state, reason, exit_code)

    def _follow(self, active: _Active) -> None:
        """A cluster that pre-empted and requeued the job goes on in an attempt of its own."""
        newest = newest_attempt(self._store.run_dir(active.run.run_id))
        active.attempt = max(active.attempt, newest)

    def _unstick(self, active: _Active, folder: Path) -> None:
        """A worker whose attempt beats no more although its place is not free."""
        if read_outcome(folder) is None:
            active.handle.kill()  # frozen: its place is needed, its checkpoints are kept

    def _settle(self, run: PlannedRun, state: RunState, *, elsewhere: bool) -> None:
        """File a run that is over."""
        if not elsewhere:
            self._spent_flops += run.cost.own_flops
        log_tail = ""
        kind: EventKind
        if state.status == "done":
            kind = "finished"
            self._finished.append(run.run_id)
        elif state.status == "diverged":
            kind = "diverged"
            self._diverged[run.run_id] = state.reason
        else:
            kind = "failed"
            self._failed[run.run_id] = state.reason
            log_tail = self._store.log_tail(run.run_id)
        self._tell(
            kind,
            run,
            attempt=state.attempt,
            reason=state.reason,
            log_tail=log_tail,
            elsewhere=elsewhere,
        )

    def _try_again(self, run: PlannedRun, state: RunState, reason: str, exit_code: int) -> None:
        """A run that was ended from outside: again, a few times, with growing pauses."""
        if exit_code == EXIT_DISK_FULL:
            raise DiskFull(disk_full(self._store.root))
        retries = self._retries.get(run.run_id, 0)
        if retries == len(BACKOFF_S):
            self._failed[run.run_id] = f"{reason}, {retries + 1} times"
            self._tell(
                "failed",
                run,
                attempt=state.attempt,
                reason=self._failed[run.run_id],
                log_tail=self._store.log_tail(run.run_id),
            )
            return
        self._retries[run.run_id] = retries + 1
        self._enqueue(run, BACKOFF_S[retries])
        self._tell("interrupted", run, attempt=state.attempt, reason=reason)

    def _show_elsewhere(self, run: PlannedRun, state: RunState) -> None:
        if run.run_id not in self._elsewhere:
            self._elsewhere.add(run.run_id)
            self._tell("started", run, attempt=state.attempt, elsewhere=True)
        if state.heartbeat and state.heartbeat.progress:
            self._tell(
                "progress",
                run,
                attempt=state.attempt,
                progress=state.heartbeat.progress,
                elsewhere=True,
            )

    def _missing_trunk(self, run: PlannedRun) -> str:
        """Why a readout can't be had in this session; empty if it can."""
        trunk = run.spec.trunk
        if trunk in self._failed and not has_snapshots(self._store, run.spec):
            return f"its trunk {trunk} failed: {self._failed[trunk]}"
        return ""

    def _waits_for_trunk(self, run: PlannedRun) -> bool:
        """Whether what a readout begins with is still being trained."""
        trunk = run.spec.trunk
        if trunk not in self._place or trunk in self._left:
            return False  # left out: what a trunk has not trained, the run trains itself
        is_over = self._store.state(trunk, self._watch).status in ("done", "diverged")
        return not (is_over or has_snapshots(self._store, run.spec))

    def _beyond_budget(self, run: PlannedRun, besides: Sequence[PlannedRun] = ()) -> str:
        """Why the session's budget forbids this run, with those about to start; empty if not."""
        flops, hours = self._budget.train_flops, self._budget.hours
        if flops is not None:
            under_way = [*(active.run for active in self._active), *besides]
            running = sum(other.cost.own_flops for other in under_way)
            if self._spent_flops + running + run.cost.own_flops > flops:
                return f"the budget of {flops:.3g} training FLOPs is used up"
        if hours is not None:
            spent_s = time.monotonic() - self._started
            if spent_s + run.cost.wall_s > 3600 * hours:
                return f"the budget of {hours:g} hours is used up"
        return ""

    def end_workers(self) -> None:
        """Stop what still runs: politely, then for good."""
        for active in self._active:
            active.handle.cancel()
        end = time.monotonic() + GRACE_S
        for active in self._active:
            while active.handle.poll() is None and time.monotonic() < end:
                time.sleep(POLL_S)
            active.handle.kill()
            self._left.append(active.run.run_id)
            self._tell("stopped", active.run, attempt=active.attempt, progress=active.progress)
        self._active.clear()

    def _tell(
        self,
        kind: EventKind,
        run: PlannedRun,
        *,
        attempt: int = 0,
        progress: Progress | None = None,
        reason: str = "",
        log_tail: str = "",
        elsewhere: bool = False,
    ) -> None:
        self._on_event(
            Event(
                kind=kind,
                run=run,
                attempt=attempt,
                progress=progress,
                reason=reason,
                log_tail=log_tail,
                elsewhere=elsewhere,
            )
        )


@contextmanager
def _stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set ``stop``; a second one interrupts at once."""

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
