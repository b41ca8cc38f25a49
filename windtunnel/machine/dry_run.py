"""The real thing on the meta device: every stage built and sharded for its place, without values.

PyTorch's fake process group lets one process be a rank of thousands. What is built is the engine's
own stages, so a size that does not divide, a stage without a home or a closed form that is wrong
shows here and not in the first minute on a machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from model.config import ModelConfig
from model.errors import ConfigError
from model.system import peak_memory_bytes
from model.training.config import TrainConfig
from windtunnel.machine.plan import MachinePlan


@dataclass(frozen=True, kw_only=True)
class BuiltRank:
    """The ranks of one place in the pipeline."""

    pipeline_rank: int
    layers: tuple[int, ...]
    """Blocks of each of its stages."""
    params: int
    """Elements that one rank keeps, counted on the built stages."""
    tensors: int


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What was built, and at what cost."""

    ranks: tuple[BuiltRank, ...]
    seconds: float
    """Processor time."""
    peak_bytes: int
    """Of this process."""


def dry_run(model: ModelConfig, train: TrainConfig, plan: MachinePlan) -> DryRun:
    """Build every rank of ``plan`` and hold its parameters against the plan's closed form.

    Raises:
        ConfigError: a built rank holds more or less than the plan says.
    """
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from model.training.distributed.engine import build_stages
    from model.training.distributed.mesh import make_meshes

    parallel = plan.parallel
    parallel.check(model, train)
    began = time.process_time()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=plan.gpus)
    ranks = []
    try:
        # The ranks of one place are alike but for padding, of which rank 0 has the least.
        meshes = make_meshes(parallel, "cpu")
        for place in range(parallel.pipeline):
            stages = build_stages(model, train, parallel, meshes, place)
            pieces = [
                piece.to_local().numel()
                for stage in stages.values()
                for piece in stage.parameters()
                if isinstance(piece, DTensor)
            ]
            layers = tuple(len(stage.plan.layers) for stage in stages.values())
            ranks.append(
                BuiltRank(
                    pipeline_rank=place,
                    layers=layers,
                    params=sum(pieces),
                    tensors=len(pieces),
                )
            )
    finally:
        dist.destroy_process_group()
    for built, planned in zip(ranks, plan.memory, strict=True):
        # A dimension that the ranks do not divide leaves the first of them a row more a tensor.
        spare = built.tensors * max(model.hidden_size, model.dense_width)
        if abs(built.params - planned.params) > spare:
            raise ConfigError(
                f"pipeline rank {built.pipeline_rank} holds {built.params:,} parameters, the plan "
                f"says {planned.params:,}"
            )
    return DryRun(
        ranks=tuple(ranks),
        seconds=time.process_time() - began,
        peak_bytes=peak_memory_bytes(),
    )


def built_memory(plan: MachinePlan, built: BuiltRank) -> int:
    """Bytes of a rank by its built parameters, and the plan's activations."""
    planned = plan.memory[built.pipeline_rank]
    per_param = planned.states // planned.params
    return replace(planned, states=built.params * per_param).total
