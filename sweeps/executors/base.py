"""What the driver asks of an executor, and nothing about where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Handle(Protocol):
    """One worker that was started."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def cancel(self) -> None:
        """Ask it to stop soon; its run can be resumed. Returns at once."""

    def kill(self) -> None:
        """End it now. Returns when it is gone."""


class Executor(Protocol):
    """Starts ``python -m sweeps.worker RUN_DIR --after N`` somewhere."""

    @property
    def slots(self) -> int:
        """Workers that may run beside each other."""

    def submit(self, run_dir: Path, after: int) -> Handle:
        """Start a worker on ``run_dir``, to claim the attempt that follows ``after``."""

    def waits_for(self) -> str:
        """Why workers that were submitted have not begun, for people; empty where none waits."""

    def close(self) -> None:
        """Give back what the executor holds; its workers are gone by then."""
