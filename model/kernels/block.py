"""The halves of a block as single calls into ``block.cpp``, with their backward passes.

Each takes float32 tensors on a CPU; the plain implementation in ``model.halves`` serves everything
else, and :func:`serves` says which applies.
"""

# Shapes: B sequences, T positions (or tokens), D model width, E experts, F width of the joint
# projection (queries, keys, values), H head width, G outputs of the gate's projection, W inner
# width of a feed-forward.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.kernels import rounding, step
from model.kernels.blas import hand_over_sgemm
from model.kernels.compiled import FLAG, NUMBER, POINTER, SIZE, Operations

_HEADS, _SIZES = [*[SIZE] * 9, NUMBER], [SIZE] * 3
operations = Operations(
    "block.cpp",
    "the halves of a block",
    {
        "wt_attention_forward": [*_HEADS, *[POINTER] * 14, FLAG],
        "wt_attention_backward": [*_HEADS, *[POINTER] * 20, FLAG],
        "wt_feed_forward_forward": [*_SIZES, NUMBER, *[POINTER] * 6, FLAG],
        "wt_feed_forward_backward": [*_SIZES, NUMBER, *[POINTER] * 10, FLAG],
        "wt_router_forward": [*[SIZE] * 6, FLAG, NUMBER, NUMBER, *[POINTER] * 10],
        "wt_router_backward": [*[SIZE] * 4, FLAG, NUMBER, NUMBER, *[POINTER] * 14],
        "wt_shared_forward": [*_SIZES, *[POINTER] * 6, FLAG],
        "wt_shared_backward": [*_SIZES, *[POINTER] * 8, FLAG],
    },
    prepare=hand_over_sgemm,
)


def serves(*tensors: Tensor | None) -> bool:
    """Whether the compiled halves accept these: plain float32 on a CPU, and under autocast only a
    type they can round to.
    """
    if operations.library is None or (torch.is_autocast_enabled("cpu") and not rounding.is_on()):
        return False
    given = [t for t in tensors if t is not None]
    for t in given:  # called for every half of every step: a generator would cost more
        if not t.is_contiguous():
            return False
    return step.serves(*given)


def has_tiles() -> bool:
    """Whether plain products of some size are computed on a tile unit (AMX)."""
    return operations.library is not None and bool(operations.library.wt_has_tiles())


def can_round() -> bool:
    """Whether the factors of products can be rounded to bfloat16: the CPU multiplies that."""
    return operations.library is not None and bool(operations.library.wt_can_round())


class Heads(NamedTuple):
    """How a joint projection is laid out, and how much of each head is rotated."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int


class AttentionWeights(NamedTuple):
    """The weights of an attention half; the head norms are both given or both None, and the output
    gate's projection is None where there is no gate.
    """

    norm_D: Tensor
    qkv_FD: Tensor
    q_norm_H: Tensor | None
    k_norm_H: Tensor | None
    out_DF: Tensor
    gate_GD: Tensor | None


def attention(
    x_BTD: Tensor,
    weights: AttentionWeights,
    eps: float,
    tables: tuple[Tensor, Tensor],
    heads: Heads,
) -> Tensor:
    """x + out(attention of the normalised x), causal; gated before ``out`` where there is a gate.

    Args:
        x_BTD: the residual stream.
        weights: of the norm, the projections and the norms of queries and keys; a gate has an
            output for each head, or for each element of it.
        eps: of all norms.
        tables: cosines and sines from ``model.layers.Rotary.tables``.
        heads: how the joint projection is laid out.
    """
    y_BTD: Tensor = _Attention.apply(x_BTD, *weights, eps, tables, heads)
    return y_BTD


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        qkv_weight: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        out_weight: Tensor,
        gate_weight: Tensor | None,
        eps: float,
        tables: tuple[Tensor, Tensor],
        heads: Heads,
    ) -> Tensor:
        x = x.contiguous()
        batch, length, width = x.shape
        cos, sin = tables
        outputs = 0 if gate_weight is None else len(gate_weight)
        shape = (batch, length, width, *heads, cos.stride(0), outputs, eps)
        qkv = x.new_empty(batch, length, len(qkv_weight))
        mixed = x.new_empty(batch, length, out_weight.shape[1])
        log_sums = x.new_empty(batch, heads.num_heads, length)
        gates = None if gate_weight is None else x.new_empty(batch, length, outputs)
        y = torch.empty_like(x)
        inputs = (x, norm_weight, qkv_weight, q_norm, k_norm, out_weight, gate_weight, cos, sin)
        bf16 = ctx.bf16 = rounding.is_on()
        kept = (*inputs, qkv, mixed, log_sums, gates)
        operations("wt_attention_forward", *shape, *kept, y, bf16)
        ctx.save_for_backward(*kept)
        ctx.shape = shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, norm, qkv, q_norm, _, out, gate = saved[:7]
        dx, d_norm, d_qkv, d_out = (torch.empty_like(t) for t in (x, norm, qkv, out))
        d_heads, both = None, (None, None)
        if q_norm is not None:
            d_heads = q_norm.new_empty(2 * len(q_norm))
            both = (d_heads[: len(q_norm)], d_heads[len(q_norm) :])
        d_gate = None if gate is None else torch.empty_like(gate)
        grads = (dx, d_norm, d_qkv, d_heads, d_out, d_gate)
        operations("wt_attention_backward", *ctx.shape, *saved, dy.contiguous(), *grads, ctx.bf16)
        return dx, d_norm, d_qkv, *both, d_out, d_gate, None, None, None


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
        ctx.bf16 = rounding.is_on()
        operations("wt_feed_forward_forward", *shape, *inputs, gate_up, y, ctx.bf16)
        ctx.save_for_backward(*inputs, gate_up)
        ctx.shape = shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in saved[:4]]
        operations(
            "wt_feed_forward_backward", *ctx.shape, *saved, dy.contiguous(), *grads, ctx.bf16
        )
        return (*grads, None)
