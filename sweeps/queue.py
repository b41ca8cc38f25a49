"""The runs that wait for a slot: those that are due come out in the plan's order."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence

from sweeps.plan import PlannedRun


class Queue:
    """A heap by (time to look at it, place in the plan)."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._place = {run.run_id: place for place, run in enumerate(runs)}
        self._heap: list[tuple[float, int, PlannedRun]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[PlannedRun]:
        """All that wait, in no order."""
        return (run for _, _, run in self._heap)

    def put(self, run: PlannedRun, wait_s: float = 0.0) -> None:
        """Let ``run`` wait; it is due after ``wait_s`` seconds."""
        # Due runs share the time 0, so that among them the plan's order decides.
        due = time.monotonic() + wait_s if wait_s else 0.0
        heapq.heappush(self._heap, (due, self._place[run.run_id], run))

    def pop_due(self) -> PlannedRun | None:
        """The first run that is due, taken out; None while there is none."""
        if not self._heap or self._heap[0][0] > time.monotonic():
            return None
        return heapq.heappop(self._heap)[2]

    def due(self) -> list[PlannedRun]:
        """The runs that are due, in the plan's order; they stay."""
        now = time.monotonic()
        entries = [(place, run) for due, place, run in self._heap if due <= now]
        return [run for _, run in sorted(entries, key=lambda entry: entry[0])]

    def remove(self, runs: Sequence[PlannedRun]) -> None:
        """Take out ``runs``."""
        gone = {run.run_id for run in runs}
        self._heap = [entry for entry in self._heap if entry[2].run_id not in gone]
        heapq.heapify(self._heap)
