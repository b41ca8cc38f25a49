"""Load of the experts: what it is, how far from even, and the bias update that evens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from model.kernels import on_gpu
from model.router import Router, Routing
from model.training.config import BalanceConfig

# Shapes: T tokens, E experts, K experts per token, L mixture layers.


@dataclass(frozen=True)
class RoutingRequest:
    """What a forward pass hands back about routing besides the loads."""

    losses: bool = False
    """The auxiliary balance loss and the z-loss of each layer."""
    detail: bool = False
    """Choices, gates and scores of every token."""
    group: dist.ProcessGroup | None = None
    """Data-parallel ranks whose loads the auxiliary loss sums (the global batch)."""


@dataclass(frozen=True)
class RoutingStats:
    """What one mixture layer did in one forward pass."""

    load_E: Tensor
    """Choices that fell on each expert, int64; sums to T·K."""
    aux_loss: Tensor | None = None
    z_loss: Tensor | None = None
    detail: Routing | None = None


class LoadMetrics(NamedTuple):
    """How even a load is; each field has the load's leading shape."""

    max_vio: Tensor
    """(largest - mean) / mean, arXiv:2408.15664 eq. 4. 0 is even."""
    min_vio: Tensor
    """(mean - smallest) / mean. 1 means a dead expert."""
    normalized_entropy: Tensor
    """exp(entropy of the load) / experts. 1 is even, 1/experts is one expert taking all."""
    dead_frac: Tensor
    """Share of experts that no token chose."""


def routing_stats(
    routing: Routing, request: RoutingRequest, load_E: Tensor | None = None
) -> RoutingStats:
    """The load, counted where it is not given, and whatever else was asked for."""
    if load_E is None:
        load_E = count_choices(routing.expert_TK, routing.scores_TE.shape[1])
    return RoutingStats(
        load_E=load_E,
        aux_loss=aux_loss(routing, load_E, request.group) if request.losses else None,
        z_loss=routing.logits_TE.logsumexp(-1).square().mean() if request.losses else None,
        detail=routing if request.detail else None,
    )


def count_choices(expert_TK: Tensor, num_experts: int) -> Tensor:
    """How many of the choices fell on each expert, int64 [E]."""
    if on_cuda := on_gpu.module_for("sort", expert_TK):
        load_E: Tensor = on_cuda.count_visits(expert_TK.contiguous(), num_experts)
        return load_E
    return torch.bincount(expert_TK.flatten(), minlength=num_experts)


def aux_loss(routing: Routing, load_E: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Switch balance loss Σ f_i·P_i, which is 1 for an even load (arXiv:2408.15664 eq. 2).

    f_i = E/(K·T) · choices of expert i, over all ranks of ``group``; P_i = mean over tokens of the
    score's share. Sigmoid scores are divided by their sum first.
    """
    if group is not None:
        load_E = load_E.clone()
        dist.all_reduce(load_E, group=group)
    share_E = (routing.scores_TE / routing.scores_TE.sum(-1, keepdim=True)).mean(0)
    f_E = load_E.to(share_E.dtype) / load_E.sum() * load_E.numel()
    return (f_E * share_E).sum()


class HasRouters(Protocol):
    """A model, or the part of one that a pipeline stage holds."""

    def routers(self) -> Iterator[Router]:
        """In the order of the loads."""


@torch.no_grad()
def update_biases(
    model: HasRouters,
    loads: Sequence[Tensor],
    balance: BalanceConfig,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Move every layer's selection bias towards its underloaded experts, once per step.

    ``loads``: one [E] count a mixture layer, in the order of ``model.routers()``; they are summed
    over the ranks of ``group`` first. With e = sign(mean load - load) the bias grows by u·e
    (DeepSeek, arXiv:2408.15664) or u·(e - mean e) (Ling 2.0): the same choices, no drift.
    """
    biases = [r.selection_bias for r in model.routers() if r.selection_bias is not None]
    if balance.rule == "none" or not biases:
        return
    load_LE = torch.stack(list(loads))
    if group is not None:
        dist.all_reduce(load_LE, group=group)
    # Integers: load < mean exactly when E·load < total.
    error_LE = load_LE.sum(-1, keepdim=True) - load_LE.shape[-1] * load_LE
    step_LE = error_LE.sign().float()
    if balance.rule == "zero_mean_sign":
        step_LE = step_LE - step_LE.mean(-1, keepdim=True)
    torch._foreach_add_(biases, list((step_LE * balance.update_rate).unbind()))


def load_metrics(load_E: Tensor) -> LoadMetrics:
    """Measure a load [..., E] of non-negative counts, not all zero."""
    share = load_E / load_E.sum(-1, keepdim=True)
    num_experts = load_E.shape[-1]
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return LoadMetrics(
        max_vio=share.amax(-1) * num_experts - 1,
        min_vio=1 - share.amin(-1) * num_experts,
        normalized_entropy=entropy.exp() / num_experts,
        dead_frac=(load_E == 0).float().mean(-1),
    )
