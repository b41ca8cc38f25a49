"""This machine's memory, and whether the runs of a plan could be held by it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console

from model.errors import ConfigError
from model.memory import PrecisionPlan, state_memory
from model.system import is_macos, read_system_file, said_by, sysctl
from model.training.config import TrainConfig
from sweeps.executors import ExecutorConfig
from sweeps.plan import PlannedRun
from windtunnel.console import prose, si
from windtunnel.machine.memory_plan import FP32
from windtunnel.machine.one_gpu import BF16_WEIGHTS
from windtunnel.own_gpu import HERE, has_gpu


class OwnMemory(NamedTuple):
    """Bytes, after a container's limit."""

    total: int
    available: int


def own_memory() -> OwnMemory | None:
    """This machine's; None where the system does not tell."""
    return _of_macos() if is_macos() else _of_linux()


def _of_macos() -> OwnMemory | None:
    """From ``sysctl`` and ``vm_stat``: what is free, and what is kept only in case it is wanted."""
    pages = dict(re.findall(r"^Pages (\w+): +(\d+)\.$", said_by("vm_stat") or "", re.MULTILINE))
    total, page = sysctl("hw.memsize"), sysctl("hw.pagesize")
    kinds = ("free", "inactive", "speculative")
    if not (total.isdigit() and page.isdigit() and set(kinds) <= set(pages)):
        return None
    available = int(page) * sum(int(pages[kind]) for kind in kinds)
    return OwnMemory(total=int(total), available=available)


def _of_linux() -> OwnMemory | None:
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in read_system_file("/proc/meminfo").splitlines()
        if line.startswith(("MemTotal", "MemAvailable", "MemFree"))
    }
    # Some sandboxes and kernels before 3.14 have no MemAvailable; what is free is less than that.
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable", sizes.get("MemFree"))
    if total is None or available is None:
        return None
    limit = read_system_file("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        used = int(read_system_file("/sys/fs/cgroup/memory.current").strip() or 0)
        # Files that were read are counted as used, and given up when memory is wanted.
        kept = re.search(
            r"^inactive_file (\d+)$", read_system_file("/sys/fs/cgroup/memory.stat"), re.MULTILINE
        )
        used -= int(kept[1]) if kept else 0
        total, available = min(total, int(limit)), min(available, int(limit) - used)
    return OwnMemory(total=total, available=available)


def refuse_too_large(
    runs: Sequence[PlannedRun],
    executor: ExecutorConfig,
    device: str,
    console: Console,
    *,
    dry_run: bool,
) -> None:
    """Refuse ``runs`` that are to be trained here; of a dry run only say so.

    Raises:
        ConfigError: :func:`too_large` has something to say.
    """
    said = too_large(runs, executor, device)
    if said and not dry_run:
        raise ConfigError(said)
    if said:
        prose(console, f"It would be refused: {said}")


def too_large(runs: Sequence[PlannedRun], executor: ExecutorConfig, device: str) -> str:
    """A sentence on the largest run where this machine could not hold it; empty where it could.

    Only what no run does without is counted: weights, gradients and moments. A run beyond that is
    killed by the system as often as it is tried, and may take others with it.
    """
    memory = own_memory()
    if not runs or memory is None or executor.kind not in HERE or device == "cuda":
        return ""
    needed = {
        run.run_id: state_memory(run.spec.model, _numbers_of(run.spec.train)).total for run in runs
    }
    largest = max(needed, key=lambda name: needed[name])
    if needed[largest] <= memory.total or (device == "auto" and has_gpu()):
        return ""
    return (
        f"{largest}: its weights, gradients and moments take {si(needed[largest])}B, this machine "
        f"has {si(memory.total)}B; choose a smaller model, or plan it for GPUs: "
        "`windtunnel machine --help`"
    )


def _numbers_of(train: TrainConfig) -> PrecisionPlan:
    if train.precision == "bf16_weights":
        return BF16_WEIGHTS
    # Muon has one moment of most parameters, AdamW two of a few.
    return replace(FP32, moment_bytes={"adamw": 8, "adamw8bit": 2, "muon": 4}[train.optimizer.kind])
