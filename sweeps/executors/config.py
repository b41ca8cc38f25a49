"""The executors a sweep can be given, and how each is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.config import require, require_positive
from model.training.config import RuntimeConfig
from sweeps.executors.base import Executor
from sweeps.executors.inline import InlineExecutor
from sweeps.executors.local import LocalExecutor


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

    def __post_init__(self) -> None:
        require(self.gpus >= 0, f"gpus must be >= 0, got {self.gpus}")
        require_positive(runs_per_gpu=self.runs_per_gpu)
        if self.workers is not None:
            require_positive(workers=self.workers)


ExecutorConfig = InlineConfig | LocalConfig


def make_executor(config: ExecutorConfig, runtime: RuntimeConfig) -> Executor:
    """The executor for runs of ``runtime``'s thread count."""
    if isinstance(config, InlineConfig):
        return InlineExecutor()
    if config.workers is not None:
        slots = config.workers
    elif config.gpus:
        slots = config.gpus * config.runs_per_gpu
    else:
        # Measured: one thread a worker and a worker a core beats fewer workers of more threads.
        slots = max(1, usable_cores() // runtime.threads)
    return LocalExecutor(slots=slots, threads=runtime.threads, gpus=config.gpus)


def usable_cores() -> int:
    """Cores this process may use: its affinity, and a container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
