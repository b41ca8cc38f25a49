"""The small operations of a step as single calls into ``step.cpp``, with their backward passes.

Each takes float32 tensors on a CPU and stands beside the plain way in ``model.layers``,
``model.attention`` and ``model.router``, which serves everything else; :func:`serves` tells.
"""

# Shapes: B sequences, T positions (or tokens), D model width, E experts, K experts per token,
# Q query heads, G key heads, H head width.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.kernels.compiled import FLAG, NUMBER, POINTER, SIZE, Operations

operations = Operations(
    "step.cpp",
    "small operations",
    {
        "wt_norm_forward": [SIZE, SIZE, POINTER, POINTER, NUMBER, POINTER],
        "wt_norm_backward": [SIZE, SIZE, *[POINTER] * 3, NUMBER, *[POINTER] * 2],
        "wt_swiglu_forward": [SIZE, SIZE, POINTER, POINTER],
        "wt_swiglu_backward": [SIZE, SIZE, *[POINTER] * 3],
        "wt_route": [*[SIZE] * 5, FLAG, NUMBER, *[POINTER] * 5],
        "wt_route_backward": [*[SIZE] * 3, FLAG, NUMBER, *[POINTER] * 5],
        "wt_embed": [SIZE, SIZE, SIZE, *[POINTER] * 3],
        "wt_embed_backward": [SIZE, SIZE, SIZE, *[POINTER] * 3],
    },
    results={"wt_embed": FLAG},
)

_PLAIN = (Tensor, torch.nn.Parameter)


def serves(*tensors: Tensor) -> bool:
    """Whether the compiled operations can take these: plain float32 tensors in a CPU's memory."""
    for t in tensors:  # asked a hundred times a step, so without a generator
        if t.dtype is not torch.float32 or type(t) not in _PLAIN or not t.is_cpu:
            return False
    return operations.library is not None


def serves_in_place(*tensors: Tensor) -> bool:
    """The same for operations that go through a tensor's memory from its address on."""
    for t in tensors:
        if not t.is_contiguous():
            return False
    return serves(*tensors)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``model.layers.rms_norm`` with one weight for all rows."""
    y: Tensor = _Norm.apply(x, weight_D, eps)
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x, weight_D = x.contiguous(), weight_D.contiguous()
        y = torch.empty_like(x)
        width = x.shape[-1]
        rows = x.numel() // width
        operations("wt_norm_forward", rows, width, x, weight_D, eps, y)
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D = ctx.saved_tensors
        grad, width = grad.contiguous(), x.shape[-1]
        dx, d_weight = torch.empty_like(x), torch.empty_like(weight_D)
        rows = x.numel() // width
        operations("wt_norm_backward", rows, width, grad, x, weight_D, ctx.eps, dx, d_weight)
        return dx, d_weight, None


def swiglu(gate_up: Tensor) -> Tensor:
    """``model.layers.swiglu``: [..., 2·W] with the gates first to [..., W]."""
    y: Tensor = _SwiGLU.apply(gate_up)
    return y


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        width = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        rows = gate_up.numel() // (2 * width)
        operations("wt_swiglu_forward", rows, width, gate_up, y)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grad, d_gate_up = grad.contiguous(), torch.empty_like(gate_up)
        width = gate_up.shape[-1] // 2
        rows = gate_up.numel() // (2 * width)
        operations("wt_swiglu_backward", rows, width, grad, gate_up, d_gate_up)
        return d_gate_up


class Rule(NamedTuple):
    """How a router chooses and weighs."""

    experts_per_token: int
    num_groups: int
    groups_per_token: int
    normalize_gates: bool
    routed_scale: float


def route(logits_TE: Tensor, bias_E: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen experts [T, K], their gates [T, K] and all scores [T, E].

    What ``model.router`` does in some twenty operations; of equal scores the first expert wins.
    """
    expert_TK, gate_TK, scores_TE = _Route.apply(logits_TE, bias_E, rule)
    return expert_TK, gate_TK, scores_TE


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TE: Tensor, bias_E: Tensor | None, rule: Rule
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = logits_TE.contiguous()
        num_tokens, num_experts = logits_TE.shape
        top_k, groups, kept, normalize, scale = rule
        scores_TE = torch.empty_like(logits_TE)
        expert_TK = logits_TE.new_empty(num_tokens, top_k, dtype=torch.int64)
        gate_TK = logits_TE.new_empty(num_tokens, top_k)
        sizes = (num_tokens, num_experts, top_k, groups, kept, normalize, scale)
        operations("wt_route", *sizes, logits_TE, bias_E, scores_TE, expert_TK, gate_TK)
        ctx.save_for_backward(scores_TE, expert_TK)
        ctx.sizes = (num_tokens, num_experts, top_k, normalize, scale)
        ctx.mark_non_differentiable(expert_TK)
        ctx.set_materialize_grads(False)
        return expert_TK, gate_TK, scores_TE

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, _expert: None, d_gate_TK: Tensor | None, d_scores_TE: Tensor | None
    ) -> tuple[Tensor, None, None]:
        scores_TE, expert_TK = ctx.saved_tensors
        d_gate = torch.zeros_like(expert_TK, dtype=scores_TE.dtype)
        if d_gate_TK is not None:
            d_gate = d_gate_TK.contiguous()
        d_scores = None if d_scores_TE is None else d_scores_TE.contiguous()
        d_logits = torch.empty_like(scores_TE)
        tensors = (scores_TE, expert_TK, d_gate, d_scores, d_logits)
        operations("wt_route_backward", *ctx.sizes, *tensors)
        return d_logits, None, None


def embed(tokens: Tensor, table_VD: Tensor) -> Tensor:
    """``F.embedding``: rows of the table, [..., D].

    Raises:
        IndexError: a token outside the vocabulary.
    """
    y: Tensor = _Embed.apply(tokens, table_VD)
    return y


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor) -> Tensor:
        tokens, table = tokens.contiguous(), table.contiguous()
        vocabulary, width = table.shape
        y = table.new_empty(*tokens.shape, width)
        if operations("wt_embed", tokens.numel(), width, vocabulary, tokens, table, y):
            raise IndexError(f"a token lies outside the vocabulary of {vocabulary}")
        ctx.save_for_backward(tokens, table)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        tokens, table = ctx.saved_tensors
        grad, d_table = grad.contiguous(), torch.empty_like(table)
        vocabulary, width = table.shape
        sizes = (tokens.numel(), width, vocabulary)
        operations("wt_embed_backward", *sizes, tokens, grad, d_table)
        return None, d_table
