"""The sign of life of an attempt, and the notice that it was taken over or orphaned."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from sweeps.attempt import Attempt, ClaimLost, Heartbeat, Progress
from sweeps.liveness import BEAT_S, PARENT_VARIABLE
from sweeps.trouble import EXIT_STOPPED


class Pulse(threading.Thread):
    """Beats for an attempt in the background, and notices when it was taken over or orphaned."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(name="pulse", daemon=True)
        self.phase = "starting"
        self.progress: Progress | None = None
        self.is_lost = False
        self.attempt = attempt
        self._over = threading.Event()
        self._parent = int(os.environ.get(PARENT_VARIABLE, "0"))

    def run(self) -> None:
        """Beat until told to end."""
        beat = 0
        while not self._over.is_set():
            beat += 1
            try:
                self.attempt.beat(
                    Heartbeat(beat=beat, time=time.time(), phase=self.phase, progress=self.progress)
                )
                self.is_lost = self.attempt.is_fenced()
            except OSError:
                # The store is away. A beat that is missed too long costs the claim, no more; the
                # next write of the run itself tells a lasting trouble.
                pass
            if self._parent and os.getppid() != self._parent:
                os._exit(EXIT_STOPPED)  # where the kernel did not end us with the driver
            self._over.wait(BEAT_S)

    def end(self) -> None:
        """Stop beating."""
        self._over.set()
        self.join()


class Stopped(Exception):
    """The worker was asked to stop."""


def reporting(pulse: Pulse, stop: threading.Event) -> Callable[[Progress], None]:
    """What a run reports each step to: its sign of life tells it, and it learns if it must stop."""

    def report(progress: Progress) -> None:
        pulse.phase, pulse.progress = "training", progress
        if pulse.is_lost:
            raise ClaimLost(f"attempt {pulse.attempt.number} was taken over")
        if stop.is_set():
            raise Stopped

    return report
