"""Which experts a token visits, and with what weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MoEConfig
from model.kernels import on_gpu, step
from model.kernels.step import Rule
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
        self.rule = rule_of(config)
        bias = torch.zeros(config.num_experts) if config.selection_bias else None
        self.register_buffer("selection_bias", bias)

    def forward(self, x_TD: Tensor) -> Routing:
        """Choose K experts for each token and weigh them."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = logits(x_TD, self.weight)
        return self.decide(logits_TE)

    def decide(self, logits_TE: Tensor) -> Routing:
        """Choose and weigh by the logits of all experts."""
        c = self.config
        if c.score == "sigmoid" and step.serves(logits_TE):
            expert_TK, gate_TK, scores_TE = step.route(logits_TE, self.selection_bias, self.rule)
            return Routing(expert_TK, gate_TK, logits_TE, scores_TE)
        if c.score == "sigmoid":
            scores_TE = logits_TE.sigmoid()
        else:
            scores_TE = logits_TE.softmax(-1)
        if on_cuda := on_gpu.module_for("router", scores_TE):
            expert_TK, gate_TK = on_cuda.choose(scores_TE, self.selection_bias, self.rule)
            return Routing(expert_TK, gate_TK, logits_TE, scores_TE)
        expert_TK = choose(scores_TE.detach(), self.selection_bias, c)
        gate_TK = scores_TE.gather(1, expert_TK)
        if self.rule.normalize_gates:
            gate_TK = gate_TK / (gate_TK.sum(-1, keepdim=True) + 1e-20)
        return Routing(expert_TK, gate_TK * c.routed_scale, logits_TE, scores_TE)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Small steps of 1e-3 vanish in bfloat16 beside a bias of 1, so `.to(bfloat16)` moves the
        # bias to another device but leaves its type.
        bias = self.selection_bias
        super()._apply(fn, recurse)
        if bias is not None and self.selection_bias is not None:
            moved = self.selection_bias
            self.selection_bias = moved.float() if bias.is_meta else bias.to(moved.device)
        return self


def rule_of(config: MoEConfig) -> Rule:
    """How the fused operations are told to choose."""
    return Rule(
        config.experts_per_token,
        config.num_groups,
        config.groups_per_token,
        config.normalize_gates and config.experts_per_token > 1,
        config.routed_scale,
    )


def logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x · wᵀ [T, E], at least float32: a choice must not hang on a bfloat16's last bit."""
    if x_TD.dtype == weight_ED.dtype == torch.bfloat16:
        out_TE: Tensor = _LogitsOfBfloat16.apply(x_TD, weight_ED)
        return out_TE
    return F.linear(at_least_float32(x_TD), at_least_float32(weight_ED))


class _LogitsOfBfloat16(torch.autograd.Function):
    """Keeps its bfloat16 inputs; the framework would keep float32 copies of twice their size.

    On a GPU its bfloat16 units do the products (989 TFLOP/s of a Hopper's, 67 of its float32): the
    product of two such numbers is exact in float32, in which the sums are taken. A gradient enters
    as the sum of two bfloat16 numbers, 16 bits of it.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        if x_TD.is_cuda:
            return torch.mm(x_TD, weight_ED.T, out_dtype=torch.float32)
        return F.linear(x_TD.float(), weight_ED.float())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
        x_TD, weight_ED = ctx.saved_tensors
        if not x_TD.is_cuda:
            d_x, d_weight = grad_TE @ weight_ED.float(), grad_TE.T @ x_TD.float()
            return d_x.to(x_TD.dtype), d_weight.to(weight_ED.dtype)
        high = grad_TE.bfloat16()
        halves = torch.cat([high, (grad_TE - high).bfloat16()], dim=1)
        d_x = halves @ torch.cat([weight_ED, weight_ED])
        d_weight = torch.mm(halves.T, x_TD, out_dtype=torch.float32).unflatten(0, (2, -1)).sum(0)
        return d_x, d_weight.to(weight_ED.dtype)


def choose(scores_TE: Tensor, bias_E: Tensor | None, config: MoEConfig) -> Tensor:
    """The experts [T, K] with the highest biased scores, all from the best few groups.

    A group's score is the sum of its best two (Ling 2.0, DeepSeek-V3). The final top-k looks at the
    kept groups only, which is cheaper than masking the others.
    """
    if bias_E is not None:
        scores_TE = scores_TE + bias_E
    if config.groups_per_token == config.num_groups:
        return scores_TE.topk(config.experts_per_token, dim=-1, sorted=False).indices
    group_size = config.num_experts // config.num_groups
    scores_TGS = scores_TE.unflatten(-1, (config.num_groups, group_size))
    group_score_TG = sum_of_best_two(scores_TGS.permute(2, 1, 0)).mT
    kept_TK = group_score_TG.topk(config.groups_per_token, dim=-1, sorted=False).indices
    kept_scores = scores_TGS.gather(1, kept_TK[..., None].expand(-1, -1, group_size)).flatten(1)
    place_TK = kept_scores.topk(config.experts_per_token, dim=-1, sorted=False).indices
    group_TK = kept_TK.gather(1, place_TK.div(group_size, rounding_mode="floor"))
    return group_TK * group_size + place_TK % group_size


def sum_of_best_two(x: Tensor) -> Tensor:
    """Largest plus second largest along the first dimension (of at least 2).

    A knock-out tournament that remembers each half's best and second: ``topk(2)`` on a CPU takes
    three times as long.
    """
    size = 1 << (x.shape[0] - 1).bit_length()
    a, b = F.pad(x.contiguous(), (0, 0, 0, 0, 0, size - x.shape[0]), value=-torch.inf).chunk(2)
    best, second = torch.maximum(a, b), torch.minimum(a, b)
    while best.shape[0] > 1:
        (a, b), (second_a, second_b) = best.chunk(2), second.chunk(2)
        best = torch.maximum(a, b)
        second = torch.maximum(torch.minimum(a, b), torch.maximum(second_a, second_b))
    return (best + second)[0]
