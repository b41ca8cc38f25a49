"""Time spent working, without the time a process was stopped or its machine slept.

A clock goes on while a process is stopped (Ctrl-Z, a debugger, a cluster that suspends its job), a
machine is frozen or a job waits in a queue. A pace taken over that time is too slow until much more
time has passed, and what is left looks too long.
"""

from __future__ import annotations

PAUSE_S = 10.0
"""A shorter stretch is work, however little came of it."""
SLOWEST = 10.0
"""A longer one in which less than this part of the usual came of it was none."""


class WorkingTime:
    """Tells a pause from work by what came of a stretch of time.

    Two such stretches one after the other are no pause: the work itself has become slow.
    """

    def __init__(self) -> None:
        self._after_pause = False

    def of(self, stretch_s: float, done: float, pace: float | None) -> float:
        """Seconds of ``stretch_s`` that were work.

        Args:
            stretch_s: by the clock, from one look at the work to the next.
            done: what came of it, in any unit.
            pace: how much a second usually comes; None where that is not known yet.
        """
        usual_s = done / pace if pace else stretch_s
        is_pause = stretch_s > max(PAUSE_S, SLOWEST * usual_s) and not self._after_pause
        self._after_pause = is_pause
        return usual_s if is_pause else stretch_s
