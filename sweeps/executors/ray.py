"""Runs as tasks of a Ray cluster: the only file that knows Ray.

A task starts the same worker process as everywhere and waits for it, so a run is as isolated as it
is elsewhere, and a worker ends with the task, the task with the driver.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.wording import counted
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
ANSWER_S = 5.0
"""Seconds for a cluster's head to take a connection; Ray itself would try for minutes."""


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


@dataclass(frozen=True)
class _Room:
    """What a node has, what is free, or what a run takes."""

    cores: float
    gpus: float

    def runs(self, takes: _Room) -> int:
        """How many runs that take ``takes`` each find room in this."""
        by_cores = int(self.cores / takes.cores)
        return min(by_cores, int(self.gpus / takes.gpus)) if takes.gpus else by_cores

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores:g} cores"
        return f"{cores} and {self.gpus:g} {'GPU' if self.gpus == 1 else 'GPUs'}"


def _room(resources: Mapping[str, float]) -> _Room:
    return _Room(cores=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))


def _listed(nodes: Sequence[_Room]) -> str:
    """Each kind of node once, the most frequent first."""
    kinds = Counter(map(str, nodes)).most_common()
    return ", ".join(f"{counted(n, 'node', 'nodes')} of {kind}" for kind, n in kinds) or "no node"


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
        _require_answer(config.address)
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
        except (ConnectionError, ValueError) as error:
            raise _no_cluster(config.address, str(error)) from None
        self._takes = _Room(cores=threads, gpus=config.gpus_per_run)
        nodes = self._nodes()
        served = sum(node.runs(self._takes) for node in nodes)
        if served < 1:
            ray.shutdown()
            raise ConfigError(
                f"executor=ray: a run takes {self._takes}, and no node of the cluster has that: "
                f"{_listed(nodes)}; take fewer threads or executor.gpus_per_run, or start such a "
                "node first (`ray status` shows what there is)"
            )
        self.slots = config.max_parallel or served
        # A lost task is the driver's to repeat, which knows the run's attempts.
        self._task = ray.remote(num_cpus=threads, num_gpus=config.gpus_per_run, max_retries=0)(
            _work
        )

    def submit(self, run_dir: Path, after: int) -> RayHandle:
        """Start a task for the run."""
        place = (str(run_dir.resolve()), after, os.getcwd())
        return RayHandle(self._ray, self._task.remote(*place, self._threads, self._command))

    def waits_for(self) -> str:
        """What of the cluster is taken by others, or gone."""
        nodes = self._nodes()
        if not any(node.runs(self._takes) for node in nodes):
            return (
                f"a run takes {self._takes}, and no node that the Ray cluster still has is that "
                f"large: {_listed(nodes)}; it begins when such a node joins"
            )
        free = _room(self._ray.available_resources())
        if free.runs(self._takes):
            return ""
        return (
            f"a run takes {self._takes}, and the Ray cluster has {free} free: {_listed(nodes)}. It "
            "begins when other tasks end (`ray status` shows what is in use)"
        )

    def _nodes(self) -> list[_Room]:
        return [_room(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]

    def close(self) -> None:
        """Leave the cluster, or end it where it is ours."""
        self._ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Where the address is a host and a port, that something listens there."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return  # auto, local, or a scheme: Ray's own to read
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str | None, why: str) -> ConfigError:
    if address == "auto":
        why = "no Ray runs on this machine"
    return ConfigError(
        f"executor.address={address}: {why}; `ray start --head` starts a cluster, `ray start "
        "--address=HEAD:6379` has a machine join one (then executor.address=auto), and "
        "executor.address=ray://HEAD:10001 reaches one from elsewhere"
    )
