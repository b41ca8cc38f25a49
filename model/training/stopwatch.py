"""Where the wall time of a run goes."""

from __future__ import annotations

import time


class Stopwatch:
    """Each lap ends one activity and begins the next."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.perf_counter()

    def lap(self, activity: str) -> float:
        """Charge the time since the last lap to ``activity``; the time now."""
        now = time.perf_counter()
        self.seconds[activity] = self.seconds.get(activity, 0.0) + now - self.last
        self.last = now
        return now
