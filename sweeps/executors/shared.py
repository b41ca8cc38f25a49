"""One worker that trains several runs, seen as a worker of each."""

from __future__ import annotations

from sweeps.executors.base import Handle


class SharedHandle:
    """The worker of several runs; each of them is told the same end, however late it asks."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        # Asked no more once it ended: the executor may have given its place to another by then.
        if self._exit_code is None:
            self._exit_code = self._handle.poll()
        return self._exit_code

    def cancel(self) -> None:
        """Ask it to stop soon, unless it ended."""
        if self.poll() is None:
            self._handle.cancel()

    def kill(self) -> None:
        """End it now, unless it ended."""
        if self.poll() is None:
            self._handle.kill()
