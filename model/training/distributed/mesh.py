"""The processes as a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from model.errors import ConfigError
from model.training.distributed.config import ParallelConfig
from model.training.distributed.context import Pieces


@dataclass(frozen=True)
class Meshes:
    """Two grids over the same processes in the same order: one for experts, one for the rest."""

    dense: DeviceMesh
    """Dimensions pipeline, replicate, shard."""
    experts: DeviceMesh
    """Dimensions pipeline, replicate, expert_shard, expert."""
    stage_group: dist.ProcessGroup
    """The ranks of one pipeline stage: replicate times shard."""
    context_group: dist.ProcessGroup | None
    """The ranks that share a sequence; None where each reads whole ones."""

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The ranks that a sequence passes through."""
        return self.dense["pipeline"].get_group()

    @property
    def pipeline_rank(self) -> int:
        """Place in the pipeline."""
        return self.dense["pipeline"].get_local_rank()

    @property
    def pieces(self) -> Pieces:
        """The part of a sequence that this rank reads."""
        return Pieces(self.context_group)

    @property
    def data_rank(self) -> int:
        """Place among the ranks, or groups of them, that read different text."""
        return dist.get_rank(self.stage_group) // self.pieces.ranks


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
    stage = init_device_mesh(device_type, (p, r * s), mesh_dim_names=("pipeline", "stage"))
    context_group = None
    if parallel.context > 1:
        sequences = (p, parallel.data, parallel.context)
        names = ("pipeline", "data", "context")
        shared = init_device_mesh(device_type, sequences, mesh_dim_names=names)
        context_group = shared["context"].get_group()
    return Meshes(dense, experts, stage["stage"].get_group(), context_group)
