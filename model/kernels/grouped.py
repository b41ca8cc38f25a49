"""The routed experts in a few grouped products: visits sorted by expert, then scattered back.

``torch.nn.functional.grouped_mm`` multiplies rows offs[e-1]..offs[e] with expert e's matrix. The
backward pass is written out: it takes fewer and cheaper steps than autograd's, does not save the
experts' outputs, and passes grouped_mm contiguous gradients only (on a CPU it refuses expanded
ones). Every visit belongs to a group, so there is never a row past the last offset, which
grouped_mm would leave uninitialised.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import at_least_float32, swiglu, swiglu_backward

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, P = T·K visits
# in the order of their expert.


def grouped(
    x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, w_gate_up: Tensor, w_down: Tensor
) -> Tensor:
    """See :func:`model.experts.routed_experts`; any type and width that ``grouped_mm`` takes."""
    y_TD: Tensor = _Grouped.apply(x_TD, gate_TK, w_gate_up, w_down, expert_TK)
    return y_TD


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gate_TK: Tensor,
        w_gate_up: Tensor,
        w_down: Tensor,
        expert_TK: Tensor,
    ) -> Tensor:
        expert_P = expert_TK.flatten()
        order_P = expert_P.argsort()
        position = torch.arange(order_P.numel(), device=order_P.device)
        row_TK = torch.empty_like(order_P).scatter_(0, order_P, position).view_as(expert_TK)
        token_P = order_P.div(expert_TK.shape[1], rounding_mode="floor")
        load_E = torch.bincount(expert_P, minlength=w_down.shape[0])
        ends_E = load_E.cumsum(0, dtype=torch.int32)

        x_PD = x_TD.index_select(0, token_P)
        gate_up_P2W = F.grouped_mm(x_PD, w_gate_up.mT, offs=ends_E)
        answer_PD = F.grouped_mm(swiglu(gate_up_P2W), w_down, offs=ends_E)
        y_TD = _gather_sum(at_least_float32(answer_PD), row_TK, gate_TK)
        ctx.save_for_backward(
            x_TD, gate_TK, w_gate_up, w_down, gate_up_P2W, order_P, token_P, row_TK, ends_E
        )
        return y_TD.to(x_TD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        (x_TD, gate_TK, w_gate_up, w_down, gate_up_P2W, order_P, token_P, row_TK, ends_E) = (
            ctx.saved_tensors
        )
        dtype = x_TD.dtype
        dy_PD = grads[0].index_select(0, token_P)
        inner_PW = swiglu(gate_up_P2W)
        # With y = Σ gate·(inner @ w_down), d_gate = <inner @ w_down, dy> = <inner, dy @ w_downᵀ>:
        # so the outputs themselves are not needed (SonicMoE, arXiv:2512.14080).
        dy_back_PW = F.grouped_mm(dy_PD, w_down.mT, offs=ends_E)
        d_gate_P = (at_least_float32(inner_PW) * dy_back_PW).sum(-1)
        gate_P1 = gate_TK.flatten().index_select(0, order_P)[:, None]
        d_w_down = F.grouped_mm((inner_PW * gate_P1).to(dtype).mT, dy_PD, offs=ends_E)
        d_gate_up = swiglu_backward((dy_back_PW * gate_P1).to(dtype), gate_up_P2W)
        d_w_gate_up = F.grouped_mm(d_gate_up.mT, x_TD.index_select(0, token_P), offs=ends_E)
        dx_PD = F.grouped_mm(d_gate_up, w_gate_up, offs=ends_E)
        return (
            _gather_sum(at_least_float32(dx_PD), row_TK).to(dtype),
            d_gate_P.index_select(0, row_TK.flatten()).view_as(gate_TK),
            d_w_gate_up,
            d_w_down,
            None,
        )


def _gather_sum(answer_PD: Tensor, row_TK: Tensor, gate_TK: Tensor | None = None) -> Tensor:
    """Per token the (weighted) sum of its K rows: a bag of K embeddings."""
    return F.embedding_bag(row_TK, answer_PD, per_sample_weights=gate_TK, mode="sum")
