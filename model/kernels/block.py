"""The halves of a block as single calls into ``block.cpp``, with their backward passes.

Each takes float32 tensors on a CPU and stands beside the plain way in ``model.halves``, which
serves everything else; :func:`serves` tells.
"""

# Shapes: B sequences, T positions (or tokens), D model width, E experts, F width of the joint
# projection (queries, keys, values), H head width, W inner width of a feed-forward.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.kernels import step
from model.kernels.blas import hand_over_sgemm
from model.kernels.compiled import NUMBER, POINTER, SIZE, Operations

_HEADS, _SIZES = [*[SIZE] * 8, NUMBER], [SIZE] * 3
operations = Operations(
    "block.cpp",
    "the halves of a block",
    {
        "wt_attention_forward": [*_HEADS, *[POINTER] * 11],
        "wt_attention_backward": [*_HEADS, *[POINTER] * 16],
        "wt_feed_forward_forward": [*_SIZES, NUMBER, *[POINTER] * 6],
        "wt_feed_forward_backward": [*_SIZES, NUMBER, *[POINTER] * 10],
        "wt_score_forward": [*_SIZES, NUMBER, *[POINTER] * 5],
        "wt_score_backward": [*_SIZES, NUMBER, *[POINTER] * 9],
        "wt_shared_forward": [*_SIZES, *[POINTER] * 7],
        "wt_shared_backward": [*_SIZES, *[POINTER] * 8],
    },
    prepare=hand_over_sgemm,
)


def serves(*tensors: Tensor | None) -> bool:
    """Whether the compiled halves take these: plain float32 on a CPU, no other type asked for."""
    given = [t for t in tensors if t is not None]
    return (
        step.serves(*given)
        and not torch.is_autocast_enabled("cpu")
        and all(t.is_contiguous() for t in given)
        and operations.library is not None
    )


class Heads(NamedTuple):
    """How a joint projection is laid out, and how much of each head is rotated."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int


class AttentionWeights(NamedTuple):
    """What an attention half computes with; the head norms are both there or both None."""

    norm_D: Tensor
    qkv_FD: Tensor
    q_norm_H: Tensor | None
    k_norm_H: Tensor | None
    out_DF: Tensor


def attention(
    x_BTD: Tensor,
    weights: AttentionWeights,
    eps: float,
    tables: tuple[Tensor, Tensor],
    heads: Heads,
) -> Tensor:
    """x + out(attention of the normalised x), causal.

    Args:
        x_BTD: the residual stream.
        weights: of the norm, the projections and the norms of queries and keys.
        eps: of all norms.
        tables: cosines and sines from ``model.layers.Rotary.tables``.
        heads: how the joint projection is laid out.
    """
    norm_D, qkv_FD, q_norm_H, k_norm_H, out_DF = weights
    head_norms = None
    if q_norm_H is not None and k_norm_H is not None:
        head_norms = torch.cat([q_norm_H, k_norm_H])
    y_BTD: Tensor = _Attention.apply(x_BTD, norm_D, qkv_FD, head_norms, out_DF, eps, tables, heads)
    return y_BTD


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        qkv_weight: Tensor,
        head_norms: Tensor | None,
        out_weight: Tensor,
        eps: float,
        tables: tuple[Tensor, Tensor],
        heads: Heads,
    ) -> Tensor:
        x = x.contiguous()
        batch, length, width = x.shape
        cos, sin = tables
        shape = (batch, length, width, *heads, cos.stride(0), eps)
        qkv = x.new_empty(batch, length, len(qkv_weight))
        mixed = x.new_empty(batch, length, out_weight.shape[1])
        log_sums = x.new_empty(batch, heads.num_heads, length)
        y = torch.empty_like(x)
        inputs = (x, norm_weight, qkv_weight, head_norms, out_weight, cos, sin)
        operations("wt_attention_forward", *shape, *inputs, qkv, mixed, log_sums, y)
        ctx.save_for_backward(*inputs, qkv, mixed, log_sums)
        ctx.shape = shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = [None if t is None else torch.empty_like(t) for t in saved[:5]]
        operations("wt_attention_backward", *ctx.shape, *saved, dy.contiguous(), *grads)
        return (*grads, None, None, None)


def feed_forward(
    x_BTD: Tensor, norm_D: Tensor, gate_up_2WD: Tensor, down_DW: Tensor, eps: float
) -> Tensor:
    """x + down(silu(gate) · up), gate and up of the normalised x."""
    y_BTD: Tensor = _FeedForward.apply(x_BTD, norm_D, gate_up_2WD, down_DW, eps)
    return y_BTD


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, gate_up_weight: Tensor, down: Tensor, eps: float
    ) -> Tensor:
        x = x.contiguous()
        width, inner = down.shape
        shape = (x.numel() // width, width, inner, eps)
        gate_up = x.new_empty(*x.shape[:-1], 2 * inner)
        y = torch.empty_like(x)
        inputs = (x, norm_weight, gate_up_weight, down)
        operations("wt_feed_forward_forward", *shape, *inputs, gate_up, y)
        ctx.save_for_backward(*inputs, gate_up)
        ctx.shape = shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in saved[:4]]
        operations("wt_feed_forward_backward", *ctx.shape, *saved, dy.contiguous(), *grads)
        return (*grads, None)


def scores(x_TD: Tensor, norm_D: Tensor, router_ED: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised x [T, D], and the router's logits of it [T, E]."""
    normed_TD, logits_TE = _Scores.apply(x_TD, norm_D, router_ED, eps)
    return normed_TD, logits_TE


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, router_weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        num_experts, width = router_weight.shape
        shape = (len(x), width, num_experts, eps)
        normed, logits = torch.empty_like(x), x.new_empty(len(x), num_experts)
        operations("wt_score_forward", *shape, x, norm_weight, router_weight, normed, logits)
        ctx.save_for_backward(x, norm_weight, router_weight, normed)
        ctx.shape = shape
        return normed, logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_normed: Tensor, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in saved[:3]]
        incoming = (d_logits.contiguous(), d_normed.contiguous())
        operations("wt_score_backward", *ctx.shape, *saved, *incoming, *grads)
        return (*grads, None)


def shared(
    x_TD: Tensor, answers_TD: Tensor, normed_TD: Tensor, gate_up_2WD: Tensor, down_DW: Tensor
) -> Tensor:
    """x + the routed experts' answers + the shared expert's of the normalised x."""
    y_TD: Tensor = _Shared.apply(x_TD, answers_TD, normed_TD, gate_up_2WD, down_DW)
    return y_TD


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, answers: Tensor, normed: Tensor, gate_up_weight: Tensor, down: Tensor
    ) -> Tensor:
        x, answers, normed = x.contiguous(), answers.contiguous(), normed.contiguous()
        width, inner = down.shape
        shape = (len(x), width, inner)
        gate_up, y = x.new_empty(len(x), 2 * inner), torch.empty_like(x)
        weights = (normed, gate_up_weight, down)
        operations("wt_shared_forward", *shape, x, answers, *weights, gate_up, y)
        ctx.save_for_backward(*weights, gate_up)
        ctx.shape = shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        saved, dy = ctx.saved_tensors, dy.contiguous()
        grads = [torch.empty_like(t) for t in saved[:3]]
        operations("wt_shared_backward", *ctx.shape, *saved, dy, *grads)
        return (dy, dy, *grads)
