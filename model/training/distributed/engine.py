"""The model, the optimizer and the schedule of one process; a step of all of them together.

Every loss is divided by the counts of the *global* batch where it is made, so gradients are summed
over ranks and micro-batches, never averaged, and the result does not depend on the parallel sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti
from torch.distributed.pipelining.stage import _PipelineStageBase
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from model.attention import Attention
from model.balance import RoutingRequest, update_biases
from model.block import Block
from model.config import AttentionConfig, ModelConfig
from model.experts import RoutedExperts
from model.init import initial_value
from model.moe import MoE
from model.training.config import BalanceConfig, TrainConfig
from model.training.distributed.config import ParallelConfig
from model.training.distributed.context import ContextAttention
from model.training.distributed.experts import ParallelExperts
from model.training.distributed.mesh import Meshes, make_meshes
from model.training.distributed.sharded_muon import ShardedMuon
from model.training.distributed.stage import NEXT_EMBEDDING, RoutingWeights, Stage, StagePlan
from model.training.evaluate import mixture_layers
from model.training.learner import Gradients
from model.training.optim import build_optimizer
from model.utilisation import LayerCounts

# Shapes: B sequences, T positions, L mixture layers of the whole model, E experts, H heads of
# prediction (1, or 2 with a prediction block), W windows of a step, K experts per token.

Schedule = PipelineScheduleMulti | Schedule1F1B
SCHEDULES: dict[str, type[PipelineScheduleMulti]] = {
    "1f1b": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
}


class Engine:
    """What one process holds of the run."""

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        parallel: ParallelConfig,
        device: torch.device,
    ) -> None:
        parallel.check(model, train)
        self.model, self.train, self.parallel, self.device = model, train, parallel, device
        self.meshes: Meshes = make_meshes(parallel, device.type)
        self.stages = build_stages(model, train, parallel, self.meshes, self.meshes.pipeline_rank)
        for stage in self.stages.values():
            materialize(stage, model, train.seed, device)
        self.module = nn.ModuleList(self.stages.values())
        self.optimizer = build_optimizer(self.module, train.optimizer, ShardedMuon)
        self._schedules: dict[tuple[int, ...], Schedule] = {}
        self._ends = embedding_group(parallel) if model.mtp_depth else None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters under the whole model's names; the embedding's copy is left out.

        Sharded ones are DTensors.
        """
        for stage in self.stages.values():
            for name, parameter in stage.named_parameters():
                if not name.startswith(NEXT_EMBEDDING):
                    yield name, parameter

    def set_rotary(self, attention: AttentionConfig) -> None:
        """Use this rotary embedding from the next forward pass on."""
        for stage in self.stages.values():
            stage.rotary = stage.pieces.rotary(attention)

    def forward_backward(self, windows: Tensor) -> Gradients:
        """Leave the gradients of the global batch ``windows`` [W, T + 1] on the parameters."""
        num_micro = self.parallel.micro_batches_of(len(windows))
        for stage in self.stages.values():
            stage.passes = self.parallel.stage_ranks * num_micro
        nats_BTH = self._run(self._mine(windows), self.parallel.micro_batch)
        self._share_embedding_gradient()
        sums = self._summed(nats_BTH)
        positions = windows.shape[0] * (windows.shape[1] - 1)
        mtp_positions = positions - windows.shape[0]
        return Gradients(
            sums[0].item() / positions,
            sums[1].item() / mtp_positions,
            tuple(self._loads()),
        )

    @torch.no_grad()
    def clip(self, clip_norm: float) -> float:
        """Scale all gradients so that their joint norm is at most ``clip_norm``; the norm before.

        Every rank holds other pieces, but for the copies of ``replicate``.
        """
        grads = [_local(p.grad) for _, p in self.named_parameters() if p.grad is not None]
        squares = torch.stack([g.double().square().sum() for g in grads]).sum()
        dist.all_reduce(squares)
        norm = (squares / self.parallel.replicate).sqrt().item()
        if norm > clip_norm:
            every = [_local(p.grad) for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(every, clip_norm / norm)
        return norm

    def update_biases(self, loads: Sequence[Tensor], balance: BalanceConfig) -> None:
        """The balance rule on this rank's routers; ``loads`` are those of all ranks and layers."""
        rows = iter(self._rows())
        for stage in self.stages.values():
            update_biases(stage, [loads[next(rows)] for _ in stage.routers()], balance)

    @torch.no_grad()
    def evaluate(self, windows: Tensor, looked_at: slice) -> tuple[Tensor, list[LayerCounts]]:
        """Nats of every target of ``windows`` [W, T + 1] and the use of every mixture layer.

        A ``model.training.evaluate.Forward`` of all ranks together; the same on each.
        """
        data, rank = self.parallel.data, self.meshes.data_rank
        num_micro = self.parallel.whole_rounds(-(-len(windows) // data))
        # Windows are dealt out in turn, so the padding comes last on every rank.
        padding = windows[:1].expand(data * num_micro - len(windows), -1)
        nats_BTH = self._run(torch.cat([windows, padding])[rank::data].to(self.device), 1)
        nats_WT = torch.zeros(len(windows), windows.shape[1] - 1, device=self.device)
        if nats_BTH is not None:
            mine_WT = nats_WT[rank::data]
            mine_WT[:, self._positions(windows)] = nats_BTH[: len(mine_WT), :, 0]
        dist.all_reduce(nats_WT)
        return nats_WT.cpu(), self._counts(windows, range(len(windows))[looked_at])

    def agree(self, value: int) -> int:
        """Rank 0's ``value``, on every rank: for what depends on a clock or a signal."""
        told = torch.tensor([value], device=self.device)
        dist.broadcast(told, src=0)
        return int(told.item())

    def _mine(self, windows: Tensor) -> Tensor:
        return windows.chunk(self.parallel.data)[self.meshes.data_rank].to(self.device)

    def _positions(self, windows: Tensor) -> Tensor:
        """Those of ``windows`` [W, T + 1] that this rank has."""
        return self.meshes.pieces.positions(windows.shape[1] - 1).to(self.device)

    def _run(self, windows: Tensor, micro_batch: int) -> Tensor | None:
        """Forward (and, with gradients on, backward); the nats where the last stage is."""
        for stage in self.stages.values():
            stage.loads.clear()
            stage.counts.clear()
        position_T = self._positions(windows)
        schedule = self._schedule(len(windows) // micro_batch, micro_batch, len(position_T))
        targets = windows[:, position_T + 1]
        after = windows[:, position_T[position_T < windows.shape[1] - 2] + 2]
        inputs = (windows[:, position_T],) if 0 in self.stages else ()
        call = schedule.step if torch.is_grad_enabled() else schedule.eval
        nats: Tensor | None = call(*inputs, target=targets, targets_BT=targets, after_BA=after)
        return None if nats is None else nats.detach()

    def _schedule(self, num_micro: int, micro_batch: int, length: int) -> Schedule:
        """The schedule for micro-batches of that shape, with gradients as they are now."""
        key = num_micro, micro_batch, length, int(torch.is_grad_enabled())
        if key not in self._schedules:
            tokens = torch.empty(micro_batch, length, dtype=torch.int64, device="meta")
            hidden = torch.empty(
                micro_batch, length, self.model.hidden_size, device="meta", requires_grad=True
            )
            heads = 1 + self.model.mtp_depth
            nats = torch.empty(micro_batch, length, heads, device="meta", requires_grad=True)
            stages: list[_PipelineStageBase] = [
                PipelineStage(
                    stage,
                    index,
                    self.parallel.num_stages,
                    self.device,
                    input_args=(tokens if stage.plan.is_first else hidden,),
                    output_args=(nats if stage.plan.is_last else hidden,),
                    group=self.meshes.pipeline_group,
                )
                for index, stage in self.stages.items()
            ]
            self._schedules[key] = self._ordered(stages, num_micro)
        return self._schedules[key]

    def _ordered(self, stages: list[_PipelineStageBase], num_micro: int) -> Schedule:
        """The passes of ``stages`` in the order that the sizes ask for."""
        ranks = self.parallel.pipeline
        # An evaluation has no backward passes to order.
        order = self.parallel.schedule if torch.is_grad_enabled() else "1f1b"
        if order == "1f1b" and len(stages) == 1 and num_micro >= ranks > 1:
            # Of a single stage a rank the interleaved one would hold a micro-batch more.
            return Schedule1F1B(stages[0], num_micro, loss_fn=self._loss, scale_grads=False)
        return SCHEDULES[order](stages, num_micro, loss_fn=self._loss, scale_grads=False)

    def _loss(self, nats_BTH: Tensor, targets_BT: Tensor) -> Tensor:
        """One micro-batch's part of the global batch's training loss."""
        length = targets_BT.shape[1] * self.parallel.context
        windows = self.train.batch_tokens // length
        loss = nats_BTH[..., 0].sum() / (windows * length)
        if self.model.mtp_depth:
            mtp = nats_BTH[..., 1].sum() / (windows * (length - 1))
            loss = loss + self.train.mtp_loss_weight * mtp
        return loss

    def _share_embedding_gradient(self) -> None:
        """The first stage's embedding and the last's copy get the sum of both gradients."""
        if self._ends is None:
            return
        first, last = self.stages.get(0), self.stages.get(self.parallel.num_stages - 1)
        weight = first.embedding.weight if first else last.next_embedding.weight if last else None
        if weight is not None:
            dist.all_reduce(_local(weight.grad), group=self._ends)

    def _summed(self, nats_BTH: Tensor | None) -> Tensor:
        """Sums of both heads over all ranks; those without the last stage add nothing."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if nats_BTH is not None:
            sums[: nats_BTH.shape[-1]] = nats_BTH.double().sum((0, 1))
        dist.all_reduce(sums)
        return sums

    def _rows(self) -> list[int]:
        """Rows of a load [L, E] that belong to this rank's routers, stage by stage."""
        row_of = {layer: row for row, layer in enumerate(mixture_layers(self.model))}
        rows = []
        for stage in self.stages.values():
            layers = [*stage.plan.layers]
            if stage.plan.is_last and self.model.mtp_depth:
                layers.append(self.model.num_layers)
            rows += [row_of[layer] for layer in layers if layer in row_of]
        return rows

    def _no_load(self) -> Tensor:
        experts = self.model.moe.num_experts if self.model.moe else 0
        shape = len(mixture_layers(self.model)), experts
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def _loads(self) -> Tensor:
        """Choices of the last run, all its micro-batches over all ranks."""
        load_LE = self._no_load()
        found = [
            torch.stack(of_passes).sum(0)
            for stage in self.stages.values()
            for of_passes in zip(*stage.loads, strict=True)
        ]
        if found:
            load_LE[self._rows()] = torch.stack(found)
        dist.all_reduce(load_LE)
        return load_LE

    def _counts(self, windows: Tensor, looked_at: Sequence[int]) -> list[LayerCounts]:
        """Use of each mixture layer in the last run, by all ranks, the padding left out.

        No two ranks have a position and a layer in common: what they saw is put together by sums.
        """
        moe, load_LE = self.model.moe, self._no_load()
        if moe is None:
            return []
        num_layers, length = len(load_LE), windows.shape[1] - 1
        shape = num_layers, len(looked_at), length, moe.experts_per_token
        choices_LWTK = torch.zeros(shape, dtype=torch.int32, device=self.device)
        sums_2L = torch.zeros(2, num_layers, dtype=torch.float64, device=self.device)
        place = {window: index for index, window in enumerate(looked_at)}
        position_T = self._positions(windows)
        rows = iter(self._rows())
        for stage in self.stages.values():
            for of_passes in zip(*stage.counts, strict=True):
                row = next(rows)
                mine = range(self.meshes.data_rank, len(windows), self.parallel.data)
                for window, counts in zip(mine, of_passes, strict=False):
                    load_LE[row] += counts.load_E.to(self.device)
                    if window in place:
                        choices_TK = counts.expert_TK.to(torch.int32)
                        choices_LWTK[row, place[window], position_T] = choices_TK
                        sums_2L[0, row] += counts.gate_entropy
                        sums_2L[1, row] += counts.top_k_mass
        for found in (load_LE, choices_LWTK, sums_2L):
            dist.all_reduce(found)
        entropy_L, mass_L = sums_2L.tolist()
        return [
            LayerCounts(load_E, choices_WTK.flatten(0, 1).long(), entropy, mass)
            for load_E, choices_WTK, entropy, mass in zip(
                load_LE.cpu(), choices_LWTK.cpu(), entropy_L, mass_L, strict=True
            )
        ]


def embedding_group(parallel: ParallelConfig) -> dist.ProcessGroup | None:
    """This rank's peer at the other end of the pipeline, where there is one.

    Every process has to make every group, so all call this.
    """
    mine = None
    to_last = (parallel.pipeline - 1) * parallel.stage_ranks
    for first in range(parallel.stage_ranks if to_last else 0):
        ends = [first, first + to_last]
        group = dist.new_group(ends)
        if dist.get_rank() in ends:
            mine = group
    return mine


def build_stages(
    model: ModelConfig,
    train: TrainConfig,
    parallel: ParallelConfig,
    meshes: Meshes,
    pipeline_rank: int,
) -> dict[int, Stage]:
    """The stages of ``pipeline_rank`` by their place, sharded, on the meta device."""
    layers = parallel.stage_layers(model.num_layers)
    balance = train.balance
    routing = RoutingWeights(
        request=RoutingRequest(
            losses=balance.aux_loss_weight > 0 or balance.z_loss_weight > 0,
            group=meshes.stage_group,
        ),
        aux=balance.aux_loss_weight,
        z=balance.z_loss_weight,
    )
    stages = {}
    for index in range(pipeline_rank, parallel.num_stages, parallel.pipeline):
        plan = StagePlan(
            layers=layers[index], is_first=index == 0, is_last=index == parallel.num_stages - 1
        )
        with torch.device("meta"):
            stage = Stage(
                model,
                plan,
                precision=train.precision,
                recompute=parallel.recompute,
                routing=routing,
                pieces=meshes.pieces,
            )
        stages[index] = shard(stage, parallel, meshes, is_bf16=train.precision != "fp32")
    return stages


def shard(stage: Stage, parallel: ParallelConfig, meshes: Meshes, *, is_bf16: bool) -> Stage:
    """Spread a stage's experts and sequences, and shard every parameter, block by block (FSDP2).

    Experts, nearly all of a large model, are gathered in the type they are multiplied in; the rest
    in float32, since routers, norms and the residual stream need it, and autocast casts the others.
    """
    product = torch.bfloat16 if is_bf16 else None
    # In a pipeline a stage's weights stay gathered over all its micro-batches.
    dense = partial(
        fully_shard,
        mesh=meshes.dense["replicate", "shard"],
        reshard_after_forward=parallel.pipeline == 1,
    )
    shard_dim = parallel.expert_shard_dim(stage.config.moe) if stage.config.moe else 1
    expert = partial(
        fully_shard,
        mesh=meshes.experts["replicate", "expert_shard"],
        reshard_after_forward=parallel.pipeline == 1,
        shard_placement_fn=lambda parameter: Shard(shard_dim),
        mp_policy=MixedPrecisionPolicy(
            param_dtype=product, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
    )
    blocks: list[nn.Module] = [*stage.blocks.values()]
    if hasattr(stage, "mtp"):
        blocks.append(stage.mtp)
    for block in blocks:
        for module in [*block.modules()]:
            if isinstance(module, Block) and meshes.context_group is not None:
                whole = cast(Attention, module.attention)  # others were refused before
                module.attention = ContextAttention(whole, meshes.pieces)
            if isinstance(module, MoE):
                built_in = cast(RoutedExperts, module.experts)
                module.experts = ParallelExperts(built_in, meshes.experts["expert"])
                expert(module.experts)
        dense(block)
    dense(stage)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return stage


@torch.no_grad()
def materialize(stage: Stage, config: ModelConfig, seed: int, device: torch.device) -> None:
    """The initial values that a single process would draw, each rank keeping its piece."""
    stage.to_empty(device=device)
    for module_name, module in stage.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            whole = initial_value(
                module, name.replace(NEXT_EMBEDDING, "embedding"), parameter.shape, config, seed
            )
            if isinstance(parameter, DTensor):
                piece = distribute_tensor(
                    whole, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
                parameter.to_local().copy_(piece.to_local())
            else:
                parameter.copy_(whole)
        for buffer in module.buffers(recurse=False):
            buffer.zero_()


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
