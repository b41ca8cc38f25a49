"""Where the wall time of a run goes, without what a machine's first run waits for its kernels."""

from __future__ import annotations

import time

from model.kernels.compiled import built_s


class Stopwatch:
    """Each lap ends one activity and begins the next."""

    def __init__(self, *runs: dict[str, float]) -> None:
        """``runs``: the seconds by activity of each run that is timed; a stack's share them."""
        self._runs = runs
        self.last = time.perf_counter()
        self._built_s = built_s()

    def lap(self, activity: str) -> float:
        """Charge the time since the last lap to ``activity``, to each run its share; the time now.

        Kernels that were compiled meanwhile are left out: no other run waits for them.
        """
        now, built = time.perf_counter(), built_s()
        share = (now - self.last - (built - self._built_s)) / len(self._runs)
        for seconds in self._runs:
            seconds[activity] = seconds.get(activity, 0.0) + share
        self.last, self._built_s = now, built
        return now
