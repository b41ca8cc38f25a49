"""Runs in the driver's own process, one after the other: breakpoints and tracebacks work."""

from __future__ import annotations

from pathlib import Path

from sweeps.measure import measure_run


class _Finished:
    """A worker that ran to its end inside ``submit``."""

    def __init__(self, exit_code: int) -> None:
        self._exit_code = exit_code

    def poll(self) -> int | None:
        return self._exit_code

    def cancel(self) -> None:
        pass

    def kill(self) -> None:
        pass


class InlineExecutor:
    """One slot; ``submit`` returns when the run is over."""

    slots = 1

    def submit(self, run_dir: Path, after: int) -> _Finished:
        """Run it here and now."""
        from sweeps.worker import run_worker  # here: the worker knows the executors

        return _Finished(run_worker(run_dir.resolve(), after=after, measure=measure_run))

    def waits_for(self) -> str:
        """Nothing: a worker begins at once."""
        return ""

    def close(self) -> None:
        """Nothing is held."""
