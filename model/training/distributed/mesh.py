"""The processes as a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from model.errors import ConfigError
from model.training.distributed.config import ParallelConfig


@dataclass(frozen=True)
class Meshes:
    """Two grids over the same processes in the same order: one for experts, one for the rest."""

    dense: DeviceMesh
    """Dimensions pipeline, replicate, shard."""
    experts: DeviceMesh
    """Dimensions pipeline, replicate, expert_shard, expert."""
    data_group: dist.ProcessGroup
    """The ranks of one pipeline stage: replicate times shard."""

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The ranks that a sequence passes through."""
        return self.dense["pipeline"].get_group()

    @property
    def pipeline_rank(self) -> int:
        """Place in the pipeline."""
        return self.dense["pipeline"].get_local_rank()

    @property
    def data_rank(self) -> int:
        """Place among the ranks that read different text."""
        return dist.get_rank(self.data_group)


def make_meshes(parallel: ParallelConfig, device_type: str) -> Meshes:
    """The grids; neighbours in rank are neighbours in ``expert``, whose traffic is the heaviest.

    Raises:
        ConfigError: the sizes do not multiply to the number of processes there are.
    """
    if dist.get_world_size() != parallel.world_size:
        raise ConfigError(
            f"the parallel sizes multiply to {parallel.world_size} processes "
            f"(pipeline {parallel.pipeline} · replicate {parallel.replicate} · shard "
            f"{parallel.shard}), there are {dist.get_world_size()}"
        )
    p, r, s, e = parallel.pipeline, parallel.replicate, parallel.shard, parallel.expert
    dense = init_device_mesh(
        device_type, (p, r, s), mesh_dim_names=("pipeline", "replicate", "shard")
    )
    experts = init_device_mesh(
        device_type,
        (p, r, s // e, e),
        mesh_dim_names=("pipeline", "replicate", "expert_shard", "expert"),
    )
    stage = init_device_mesh(device_type, (p, r * s), mesh_dim_names=("pipeline", "data"))
    return Meshes(dense, experts, stage["data"].get_group())
