"""How a user names the parallel sizes of a run: ``conf/parallel`` and ``conf/processes``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.config import require
from model.errors import ConfigError
from model.system import usable_cores
from model.training.distributed.config import ParallelConfig
from sweeps.executors.config import ExecutorConfig, SlurmConfig
from sweeps.spread import Spread
from windtunnel.machine.plan import MachinePlan

RANKS_PER_CORE = 4
"""Ranks of a job without GPUs that share a core at most; more only wait for each other."""


@dataclass(frozen=True, kw_only=True)
class SearchedSizes:
    """The fastest that fit."""

    kind: Literal["search"] = "search"


@dataclass(frozen=True, kw_only=True)
class FixedSizes:
    """These and no others."""

    kind: Literal["fixed"] = "fixed"
    sizes: ParallelConfig


@dataclass(frozen=True, kw_only=True)
class PlannedSizes:
    """Those of the promotion's machine plan."""

    kind: Literal["plan"] = "plan"


@dataclass(frozen=True, kw_only=True)
class OneProcess:
    """None: the run is trained as the rungs were."""

    kind: Literal["one"] = "one"


def spread_of(
    sizes: PlannedSizes | OneProcess | FixedSizes,
    plan: MachinePlan | None,
    executor: ExecutorConfig,
    device: Literal["auto", "cpu", "cuda"],
) -> Spread | None:
    """Over which processes a launch spreads its run; None for one.

    Raises:
        ConfigError: the machine it is launched on does not hold so many.
    """
    if isinstance(sizes, OneProcess):
        return None
    if isinstance(sizes, FixedSizes):
        parallel = sizes.sizes
    elif plan is None or plan.gpus == 1:
        return None
    else:
        parallel = plan.parallel
    if isinstance(executor, SlurmConfig):
        per_node = plan.hardware.gpus_per_node if plan is not None else parallel.world_size
        nodes = -(-parallel.world_size // per_node)
        require(
            parallel.world_size % nodes == 0,
            f"{parallel.world_size} processes do not divide into nodes of {per_node}",
        )
        return Spread(parallel=parallel, nodes=nodes)
    _require_room(parallel.world_size, plan, device)
    return Spread(parallel=parallel)


def _require_room(ranks: int, plan: MachinePlan | None, device: str) -> None:
    room, what = _room(device)
    if ranks <= room:
        return
    planned = f" (the plan is for {plan.gpus} {plan.hardware.name})" if plan is not None else ""
    raise ConfigError(
        f"processes: {ranks} processes are more than this machine's {what} hold{planned}\n"
        "- launch it on the cluster with executor=slurm\n"
        "- or promote for a machine like this one, with hardware=laptop gpus=N\n"
        "- or train in one process, with processes=one"
    )


def _room(device: str) -> tuple[int, str]:
    """Processes this machine holds, and what of."""
    if device != "cpu":
        import torch  # here: it takes seconds, and a run of one process never asks

        if torch.cuda.is_available():
            return torch.cuda.device_count(), f"{torch.cuda.device_count()} GPUs"
    cores = usable_cores()
    return RANKS_PER_CORE * cores, f"{cores} cores"
