"""Seconds that orthogonalising the updates takes a rank (:mod:`model.training.muon`)."""

from __future__ import annotations

from itertools import chain

from model.accounting import layer_counts
from model.config import ModelConfig
from model.muon_rule import layer_update_flops
from model.training.config import MuonConfig
from model.training.distributed.config import ParallelConfig
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.memory_plan import FLOAT32, blocks_of

ASSUMPTION = (
    "Muon's products reach the same efficiencies; matrices are put together in float32, an expert "
    "on the ranks of one, any other on all that share it, and nothing hides that; memory is "
    "counted as AdamW's, a moment too many"
)


def orthogonalising_s(
    model: ModelConfig,
    muon: MuonConfig,
    hardware: Hardware,
    parallel: ParallelConfig,
    counts: tuple[int, ...],
    rank: int,
) -> float:
    """Of a rank at one place in the pipeline, a step.

    Args:
        model: the whole model.
        muon: what is a matrix.
        hardware: rates.
        parallel: the sizes.
        counts: blocks of each stage.
        rank: place in the pipeline.
    """
    grouped_rate = hardware.peak_flops_per_s * hardware.grouped_efficiency
    dense_rate = hardware.peak_flops_per_s * hardware.matmul_efficiency
    seconds = gathered = 0.0
    stages = range(rank, parallel.num_stages, parallel.pipeline)
    for block in chain.from_iterable(blocks_of(model, counts, stage) for stage in stages):
        flops = layer_update_flops(model, block, per_head=muon.per_head)
        seconds += flops.routed / parallel.expert / grouped_rate + flops.others / dense_rate
        params = layer_counts(model)[block].by_group
        routed = params.get("routed_experts", 0)
        others = sum(params.values()) - routed - params["norms"]
        gathered += routed / parallel.expert * (1 - parallel.expert / parallel.shard)
        gathered += others * (1 - 1 / parallel.shard)
    return seconds + gathered * FLOAT32 / hardware.link_bytes_per_s(parallel.shard)
