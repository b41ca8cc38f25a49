"""The mixture half of a block as a single operation: norm, router, routed experts, shared expert.

For float32 on a CPU (with bfloat16 products under autocast), made of calls into ``block.cpp`` and
the expert kernel; the plain implementation is in ``model.halves`` and ``model.moe``. As four
operations of autograd a step took 4 % longer at a width of 16 (LOG.md, 2026-11-26).
"""

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, S shared width.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.kernels import cpu, rounding
from model.kernels.block import operations
from model.kernels.step import Rule


class MixtureWeights(NamedTuple):
    """The weights of a mixture half; the shared expert's are both given or both None."""

    norm_D: Tensor
    router_ED: Tensor
    gate_up_E2WD: Tensor
    down_EWD: Tensor
    shared_gate_up_2SD: Tensor | None
    shared_down_DS: Tensor | None


class Mixed(NamedTuple):
    """The output, and what the router did."""

    y_TD: Tensor
    expert_TK: Tensor
    """Chosen experts, int64."""
    gate_TK: Tensor
    logits_TE: Tensor
    scores_TE: Tensor
    load_E: Tensor
    """Choices that fell on each expert, int64."""


def mixture(
    x_TD: Tensor, weights: MixtureWeights, bias_E: Tensor | None, rule: Rule, eps: float
) -> Mixed:
    """x + the routed and shared experts' outputs for norm(x).

    Args:
        x_TD: the residual stream.
        weights: all contiguous float32.
        bias_E: added to the scores for the selection only.
        rule: how the router chooses.
        eps: of the norm.
    """
    return Mixed(*_Mixture.apply(x_TD, *weights, bias_E, rule, eps))


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        shared_gate_up: Tensor | None,
        shared_down: Tensor | None,
        bias: Tensor | None,
        rule: Rule,
        eps: float,
    ) -> tuple[Tensor, ...]:
        x = x.contiguous()
        (tokens, width), experts, top_k = x.shape, len(router), rule.experts_per_token
        normed = torch.empty_like(x)
        logits, scores = x.new_empty(tokens, experts), x.new_empty(tokens, experts)
        expert = x.new_empty(tokens, top_k, dtype=torch.int64)
        gate, load = x.new_empty(tokens, top_k), expert.new_empty(experts)
        sizes = (tokens, width, experts)
        results = (normed, logits, scores, expert, gate, load)
        operations("wt_router_forward", *sizes, *rule, eps, x, norm, router, bias, *results)

        bf16 = ctx.bf16 = rounding.is_on()
        products = cpu.products_for(torch.bfloat16 if bf16 else torch.float32, expert, down)
        keep = any(ctx.needs_input_grad)
        y, kept = cpu.forward((normed, expert, gate, gate_up, down), products, keep=keep)
        inner, shared_width = None, 0
        if shared_gate_up is not None:
            inner, shared_width = x.new_empty(tokens, len(shared_gate_up)), len(shared_gate_up) // 2
        shared = (normed, shared_gate_up, shared_down, inner)
        operations("wt_shared_forward", tokens, width, shared_width, x, *shared, y, bf16)

        ctx.save_for_backward(x, norm, router, gate_up, down, *shared, kept, scores, expert, gate)
        ctx.sizes, ctx.rule, ctx.eps, ctx.products = sizes, rule, eps, products
        ctx.mark_non_differentiable(expert, load)
        ctx.set_materialize_grads(False)
        return y, expert, gate, logits, scores, load

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        dy: Tensor | None,
        _expert: None,
        d_gate: Tensor | None,
        d_logits: Tensor | None,
        d_scores: Tensor | None,
        _load: None,
    ) -> tuple[Tensor | None, ...]:
        x, norm, router, gate_up, down, normed, *rest = ctx.saved_tensors
        shared_gate_up, shared_down, inner, kept, scores, expert, gate = rest
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        inputs = (normed, expert, gate, gate_up, down)
        d_normed, d_gate_here, d_gate_up, d_down = cpu.backward(inputs, kept, dy, ctx.products)
        if d_gate is not None:
            d_gate_here += d_gate
        d_shared: tuple[Tensor | None, ...] = (None, None)
        if shared_gate_up is not None:
            d_shared = (torch.empty_like(shared_gate_up), torch.empty_like(shared_down))
            tensors = (normed, shared_gate_up, shared_down, inner, dy, d_normed, *d_shared)
            sizes = (*x.shape, shared_down.shape[1])
            operations("wt_shared_backward", *sizes, *tensors, ctx.bf16)
        incoming = [None if d is None else d.contiguous() for d in (d_scores, d_logits)]
        dx, d_norm, d_router = (torch.empty_like(t) for t in (x, norm, router))
        rule = ctx.rule
        numbers = (rule.experts_per_token, rule.normalize_gates, rule.routed_scale, ctx.eps)
        saved = (x, norm, router, normed, scores, expert, dy, d_gate_here)
        grads = (d_normed, dx, d_norm, d_router)
        operations("wt_router_backward", *ctx.sizes, *numbers, *saved, *incoming, *grads)
        return dx, d_norm, d_router, d_gate_up, d_down, *d_shared, None, None, None
