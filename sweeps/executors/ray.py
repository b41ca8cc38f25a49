"""Runs as tasks of a Ray cluster: the only file that knows Ray.

A task starts the same worker process as everywhere and waits for it, so a run is as isolated as it
is elsewhere, and a worker ends with the task, the task with the driver.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import ConfigError
from model.training.environment import worker_environment
from sweeps.executors.local import PACKAGES, WORKER_COMMAND, Spawner
from sweeps.liveness import COMMAND_VARIABLE
from sweeps.trouble import EXIT_STOPPED

if TYPE_CHECKING:
    from sweeps.executors.config import RayConfig

LOOK_S = 0.1
"""Seconds between a task's looks at its worker."""
GONE_S = 30.0
"""Seconds within which a killed task must be gone."""


def _work(run_dir: str, after: int, cwd: str, threads: int, command: tuple[str, ...]) -> int:
    """The task: one worker process; cancelled, it asks the worker to stop and waits for it."""
    os.chdir(cwd)  # a spec's paths may be relative to where the sweep was started
    path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **worker_environment(threads), "PYTHONPATH": path}
    worker = Spawner(command, environment).start(Path(run_dir), after, {})
    try:
        while (code := worker.poll()) is None:
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        worker.terminate()
        while (code := worker.poll()) is None:
            with contextlib.suppress(KeyboardInterrupt):  # asked twice, it still waits
                time.sleep(LOOK_S)
    return code


class RayHandle:
    """One task."""

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray = ray
        self._task = task

    def poll(self) -> int | None:
        """The worker's exit code; -9 if its process or node was lost; None while it lives."""
        over, _ = self._ray.wait([self._task], timeout=0)
        if not over:
            return None
        try:
            return int(self._ray.get(self._task))
        except self._ray.exceptions.TaskCancelledError:
            return EXIT_STOPPED
        except self._ray.exceptions.RayError as error:
            if isinstance(error, self._ray.exceptions.RayTaskError):
                raise
            return -signal.SIGKILL

    def cancel(self) -> None:
        """Interrupt the task, which stops its worker."""
        self._ray.cancel(self._task)

    def kill(self) -> None:
        """End the task's process, and with it the worker; a task that is over stays as it is."""
        if self.poll() is not None:
            return
        self._ray.cancel(self._task, force=True)
        end = time.monotonic() + GONE_S
        while self.poll() is None and time.monotonic() < end:
            time.sleep(LOOK_S)


class RayExecutor:
    """A task for each run, of as many cores as the run has threads."""

    def __init__(
        self, config: RayConfig, *, threads: int = 1, command: Sequence[str] = WORKER_COMMAND
    ) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError(
                "executor=ray needs the package ray: pip install 'windtunnel-moe[ray]'"
            ) from None
        self._ray = ray
        self._threads = threads
        self._command = tuple(command)
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
        passed = {"PYTHONPATH": path}
        if COMMAND_VARIABLE in os.environ:
            passed[COMMAND_VARIABLE] = os.environ[COMMAND_VARIABLE]
        try:
            ray.init(
                address=config.address or "local",
                log_to_driver=False,
                logging_level="warning",
                runtime_env={"env_vars": passed},
                **({} if config.address else {"include_dashboard": False}),
            )
        except ConnectionError as error:
            raise ConfigError(f"executor.address={config.address}: {error}") from None
        has = ray.cluster_resources()
        served = has.get("CPU", 1.0) / threads
        if config.gpus_per_run:
            served = min(served, has.get("GPU", 0.0) / config.gpus_per_run)
        self.slots = config.max_parallel or int(served)
        if self.slots < 1:
            ray.shutdown()
            raise ConfigError(
                f"executor=ray: the cluster has {has.get('CPU', 0):g} cores and "
                f"{has.get('GPU', 0):g} GPUs, a run takes {threads} and {config.gpus_per_run:g}"
            )
        # A lost task is the driver's to repeat, which knows the run's attempts.
        self._task = ray.remote(num_cpus=threads, num_gpus=config.gpus_per_run, max_retries=0)(
            _work
        )

    def submit(self, run_dir: Path, after: int) -> RayHandle:
        """Start a task for the run."""
        place = (str(run_dir.resolve()), after, os.getcwd())
        return RayHandle(self._ray, self._task.remote(*place, self._threads, self._command))

    def close(self) -> None:
        """Leave the cluster, or end it where it is ours."""
        self._ray.shutdown()
