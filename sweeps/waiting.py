"""Runs that were handed in and do not begin: what they wait for, told once it is more than a start.

A cluster's queue may hold runs for hours, or for ever where no node can take them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sweeps.executors.base import Executor

LOOK_S = 5.0
"""Seconds between looks, each at a folder of every run, on a file system that others share."""
WAITED_S = 15.0
"""Longer than a cluster with free places takes to start a worker."""


class Waiting:
    """Asks the executor now and then, while nothing of what was handed in has begun."""

    def __init__(self, executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor = executor
        self._clock = clock
        self._looked_at = self._since = clock()
        self._told = ""

    def news(self, all_wait: Callable[[], bool]) -> str:
        """What the runs wait for, where that was not said yet; otherwise empty.

        ``all_wait``: whether there are runs handed in of which none has begun.
        """
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return ""
        self._looked_at = now
        if not all_wait():
            self._since = now
        if now - self._since < WAITED_S:
            return ""
        why = self._executor.waits_for()
        if why == self._told:
            return ""
        self._told = why
        return why
