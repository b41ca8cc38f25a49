"""The executors a sweep can be given, and how each is made."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.config import require, require_positive
from model.system import usable_cores
from model.training.config import RuntimeConfig
from sweeps.executors.base import Executor
from sweeps.executors.inline import InlineExecutor
from sweeps.executors.local import LocalExecutor
from sweeps.executors.ray import RayExecutor
from sweeps.executors.slurm import SlurmExecutor
from sweeps.liveness import COMMAND_VARIABLE
from sweeps.packing import ALONE, Packing, device_of
from sweeps.spread import Spread


@dataclass(frozen=True, kw_only=True)
class InlineConfig:
    """One run after the other in the driver's own process, for debugging."""

    kind: Literal["inline"] = "inline"


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Worker processes beside each other on this machine."""

    kind: Literal["local"] = "local"
    workers: int | None = None
    """Runs at a time; null: as many as the cores (or the GPUs) serve."""
    gpus: int = 0
    """GPUs shared out among the workers through CUDA_VISIBLE_DEVICES; 0 leaves it alone."""
    runs_per_gpu: int = 1
    """Small runs that share one GPU."""
    pack: int | None = None
    """Most runs of one shape (seeds, learning rates, balance rates) that a worker trains as one
    stacked model; null: as many as were measured to pay on its kind of device, 1: never."""

    def __post_init__(self) -> None:
        require(self.gpus >= 0, f"gpus must be >= 0, got {self.gpus}")
        require_positive(runs_per_gpu=self.runs_per_gpu)
        _require_pack(self.pack)
        if self.workers is not None:
            require_positive(workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Jobs of a Slurm cluster that sees the store; null leaves a choice to the cluster."""

    kind: Literal["slurm"] = "slurm"
    max_parallel: int = 16
    """Runs in the queue or running at a time."""
    minutes: int = 60
    """A job's time limit; a longer run is saved and requeued, as often as it takes."""
    stop_s: int = 90
    """Seconds before the limit (or the pre-emption) at which a run is told to save and stop."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: str | None = None
    """For example ``gpu:1``."""
    constraint: str | None = None
    memory_gb: float | None = None
    setup: tuple[str, ...] = ()
    """Shell lines before each job's worker, for example ``module load cuda``."""
    poll_s: float = 5.0
    """Seconds between looks at the queue."""
    pack: int | None = None
    """As for LocalConfig."""

    def __post_init__(self) -> None:
        require_positive(max_parallel=self.max_parallel, minutes=self.minutes, poll_s=self.poll_s)
        _require_pack(self.pack)
        require(
            0 < self.stop_s < 60 * self.minutes,
            f"stop_s ({self.stop_s}) must be more than 0 and less than minutes ({self.minutes})",
        )
        if self.memory_gb is not None:
            require_positive(memory_gb=self.memory_gb)


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Tasks of a Ray cluster that sees the store."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """Of a running cluster, or ``auto``; null: one on this machine, ended with the sweep."""
    max_parallel: int | None = None
    """Runs at a time; null: as many as the cluster's cores (or GPUs) serve."""
    gpus_per_run: float = 0.0
    """A fraction lets several small runs share one."""
    pack: int | None = None
    """As for LocalConfig."""

    def __post_init__(self) -> None:
        require(self.gpus_per_run >= 0, f"gpus_per_run must be >= 0, got {self.gpus_per_run}")
        _require_pack(self.pack)
        if self.max_parallel is not None:
            require_positive(max_parallel=self.max_parallel)


def _require_pack(pack: int | None) -> None:
    require(pack is None or pack >= 1, f"pack must be at least 1, or null, got {pack}")


ExecutorConfig = InlineConfig | LocalConfig | SlurmConfig | RayConfig


def make_executor(
    config: ExecutorConfig, runtime: RuntimeConfig, root: Path, spread: Spread | None = None
) -> Executor:
    """The executor for runs of ``runtime``'s thread count; ``root`` is the store's.

    ``spread``: how each run is spread over processes, where it is.
    """
    os.environ[COMMAND_VARIABLE] = json.dumps(sys.orig_argv)  # workers inherit it, Slurm's too
    if isinstance(config, InlineConfig):
        return InlineExecutor()
    if isinstance(config, SlurmConfig):
        return SlurmExecutor(config, root / "slurm", threads=runtime.threads, spread=spread)
    if isinstance(config, RayConfig):
        require(
            spread is None,
            "executor=ray gives a run one process; a run spread over several needs local or slurm",
        )
        return RayExecutor(config, threads=runtime.threads)
    slots = expected_slots(config, runtime)
    return LocalExecutor(slots=slots, threads=runtime.threads, gpus=_gpu_names(config.gpus))


def packing_for(config: ExecutorConfig, runtime: RuntimeConfig) -> Packing:
    """Which runs the executor's workers train together."""
    match config:
        case InlineConfig():
            return ALONE
        case LocalConfig():
            has_gpus = config.gpus > 0
        case SlurmConfig():
            has_gpus = "gpu" in (config.gres or "")
        case RayConfig():
            has_gpus = config.gpus_per_run > 0
    return Packing(most=config.pack, device=device_of(runtime.device, has_gpus=has_gpus))


def _gpu_names(count: int) -> tuple[str, ...]:
    """The first ``count`` GPUs that this process may use itself."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if given is None else given.split(",")
    names = [name.strip() for name in names if name.strip()]
    require(
        len(names) >= count,
        f"executor.gpus is {count}, but CUDA_VISIBLE_DEVICES={given} leaves {len(names)}",
    )
    return tuple(names[:count])


def expected_slots(config: ExecutorConfig, runtime: RuntimeConfig) -> int:
    """Runs that will be under way at a time, told without starting or asking anything."""
    # Measured: one thread a worker and a worker a core beats fewer workers of more threads.
    by_cores = max(1, usable_cores() // runtime.threads)
    match config:
        case InlineConfig():
            return 1
        case LocalConfig(workers=None, gpus=0):
            return by_cores
        case LocalConfig():
            return config.workers or config.gpus * config.runs_per_gpu
        case SlurmConfig():
            return config.max_parallel
        case RayConfig():
            return config.max_parallel or by_cores
