"""Worker processes on this machine: one a slot, ended with the driver, whatever ends the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from model.training.environment import worker_environment
from sweeps.executors.forkserver import ForkServer
from sweeps.liveness import PARENT_VARIABLE

WORKER_COMMAND = (sys.executable, "-P", "-m", "sweeps.worker")
"""-P: a folder called ``model`` where the user stands must not hide ours."""

PACKAGES = Path(__file__).resolve().parents[2]
"""Where ours are imported from, in a worker too."""


class WorkerProcess(Protocol):
    """A process that was started somehow."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""


class Starter(Protocol):
    """A way of starting workers: :class:`ForkServer` or :class:`Spawner`."""

    def start(self, run_dir: Path, after: int, environment: Mapping[str, str]) -> WorkerProcess:
        """Start one, with ``environment`` on top of the common one."""

    def close(self) -> None:
        """Give back what is held."""


class Spawner:
    """A new interpreter for every run: what to use where forking is not safe (macOS)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)

    def start(
        self, run_dir: Path, after: int | None, environment: Mapping[str, str]
    ) -> SpawnedWorker:
        """Start a worker process; what it prints goes to the run's ``log.txt``.

        With ``after`` None it looks for itself which attempt is over.
        """
        claim = [] if after is None else ["--after", str(after)]
        with open(run_dir / "log.txt", "ab") as log:
            return SpawnedWorker(
                [*self._command, str(run_dir), *claim],
                env={**self._environment, **environment, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def close(self) -> None:
        """Nothing is held besides the workers."""


class SpawnedWorker(subprocess.Popen[bytes]):
    """A process whose ``kill`` waits."""

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        super().kill()
        self.wait()


class LocalHandle:
    """A worker process and the slot it sits in."""

    def __init__(self, process: WorkerProcess, slot: int, busy: set[int]) -> None:
        self._process = process
        self._slot = slot
        self._busy = busy

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._busy.discard(self._slot)
        return code

    def cancel(self) -> None:
        """SIGTERM: the worker saves its run and stops."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, also for a process that is stopped."""
        if self._process.poll() is None:
            self._process.kill()
        self._busy.discard(self._slot)


class LocalExecutor:
    """``slots`` worker processes of ``threads`` threads each, on ``gpus`` as CUDA names them.

    Workers stand in a session of their own, so that Ctrl-C reaches the driver alone, which then
    stops them in order; and each asks the kernel to end it when the driver dies (see
    sweeps.worker). The kernel means the *thread* that started it, so submit from one that lasts.
    """

    def __init__(
        self,
        *,
        slots: int,
        threads: int = 1,
        gpus: Sequence[str] = (),
        command: Sequence[str] = WORKER_COMMAND,
        starter: type[ForkServer] | type[Spawner] | None = None,
    ) -> None:
        starter = starter or (ForkServer if sys.platform == "linux" else Spawner)
        path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **worker_environment(threads), "PYTHONPATH": path}
        self.slots = slots
        self._gpus = tuple(gpus)
        self._starter: Starter = starter(command, environment)
        self._busy: set[int] = set()

    def submit(self, run_dir: Path, after: int) -> LocalHandle:
        """Start a worker in a free slot; with GPUs, slots are dealt to them in turn."""
        slot = next(slot for slot in range(self.slots) if slot not in self._busy)
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        process = self._starter.start(run_dir, after, environment)
        self._busy.add(slot)
        return LocalHandle(process, slot, self._busy)

    def waits_for(self) -> str:
        """Nothing: a worker begins at once."""
        return ""

    def close(self) -> None:
        """End what starts the workers; they are gone by then."""
        self._starter.close()
