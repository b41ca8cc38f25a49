"""Worker processes on this machine: one a slot, ended with the driver, whatever ends the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from model.training.environment import worker_environment
from sweeps.liveness import PARENT_VARIABLE

WORKER_COMMAND = (sys.executable, "-P", "-m", "sweeps.worker")
"""-P: a folder called ``model`` where the user stands must not hide ours."""

_PACKAGES = Path(__file__).resolve().parents[2]


class LocalHandle:
    """A worker process and the slot it sits in."""

    def __init__(self, process: subprocess.Popen[bytes], slot: int, busy: set[int]) -> None:
        self.process = process
        self._slot = slot
        self._busy = busy

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        code = self.process.poll()
        if code is not None:
            self._busy.discard(self._slot)
        return code

    def cancel(self) -> None:
        """SIGTERM: the worker stops after the step it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, also for a process that is stopped."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._busy.discard(self._slot)


class LocalExecutor:
    """``slots`` worker processes of ``threads`` threads each.

    Each worker leads a session of its own, so that Ctrl-C reaches the driver alone, which then
    stops them in order; and each asks the kernel to end it when the driver dies (see
    sweeps.worker). The kernel means the *thread* that started it, so submit from one that lasts.
    """

    def __init__(
        self,
        *,
        slots: int,
        threads: int = 1,
        gpus: int = 0,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.slots = slots
        self._threads = threads
        self._gpus = gpus
        self._command = tuple(command)
        self._busy: set[int] = set()

    def submit(self, run_dir: Path, after: int) -> LocalHandle:
        """Start a worker process; what it prints goes to the run's ``log.txt``."""
        slot = next(slot for slot in range(self.slots) if slot not in self._busy)
        with open(run_dir / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [*self._command, str(run_dir), "--after", str(after)],
                env=self._environment(slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._busy.add(slot)
        return LocalHandle(process, slot, self._busy)

    def close(self) -> None:
        """Nothing is held besides the workers."""

    def _environment(self, slot: int) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH")]))
        environment = {
            **os.environ,
            **worker_environment(self._threads),
            "PYTHONPATH": path,
            PARENT_VARIABLE: str(os.getpid()),
        }
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % self._gpus)
        return environment
