"""Which experts a token visits, and with what weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MoEConfig
from model.layers import at_least_float32

# Shapes: T tokens, D model width, E experts, K experts per token, G groups.


class Routing(NamedTuple):
    """The router's decision for T tokens."""

    expert_TK: Tensor
    """Chosen experts, int64."""
    gate_TK: Tensor
    """Weight of each chosen expert's output, float32; carries the gradient to the router."""
    logits_TE: Tensor
    scores_TE: Tensor
    """Sigmoid or softmax of the logits, without the selection bias."""


class Router(nn.Module):
    """Scores in float32, a bias that only enters the choice, a choice limited to few groups."""

    selection_bias: Tensor | None

    def __init__(self, config: MoEConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, width))
        bias = torch.zeros(config.num_experts) if config.selection_bias else None
        self.register_buffer("selection_bias", bias)

    def forward(self, x_TD: Tensor) -> Routing:
        """Choose K experts for each token and weigh them."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(at_least_float32(x_TD), at_least_float32(self.weight))
        if self.config.score == "sigmoid":
            scores_TE = logits_TE.sigmoid()
        else:
            scores_TE = logits_TE.softmax(-1)
        expert_TK = choose(scores_TE.detach(), self.selection_bias, self.config)
        gate_TK = scores_TE.gather(1, expert_TK)
        if self.config.normalize_gates and self.config.experts_per_token > 1:
            gate_TK = gate_TK / (gate_TK.sum(-1, keepdim=True) + 1e-20)
        return Routing(expert_TK, gate_TK * self.config.routed_scale, logits_TE, scores_TE)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Small steps of 1e-3 vanish in bfloat16 beside a bias of 1, so `.to(bfloat16)` moves the
        # bias to another device but leaves its type.
        bias = self.selection_bias
        super()._apply(fn, recurse)
        if bias is not None and self.selection_bias is not None:
            moved = self.selection_bias
            self.selection_bias = moved.float() if bias.is_meta else bias.to(moved.device)
        return self


def choose(scores_TE: Tensor, bias_E: Tensor | None, config: MoEConfig) -> Tensor:
    """The experts [T, K] with the highest biased scores, all from the best few groups.

    A group's score is the sum of its best two (Ling 2.0, DeepSeek-V3).
    """
    if bias_E is not None:
        scores_TE = scores_TE + bias_E
    if config.groups_per_token < config.num_groups:
        grouped_TGE = scores_TE.unflatten(-1, (config.num_groups, -1))
        group_score_TG = grouped_TGE.topk(2, dim=-1).values.sum(-1)
        kept = group_score_TG.topk(config.groups_per_token, dim=-1, sorted=False).indices
        dropped_TG = torch.ones_like(group_score_TG, dtype=torch.bool).scatter_(1, kept, False)
        scores_TE = grouped_TGE.masked_fill(dropped_TG[..., None], -torch.inf).flatten(1)
    return scores_TE.topk(config.experts_per_token, dim=-1, sorted=False).indices
