"""The routed experts on a GPU in Triton kernels, behind autograd.

The dataflow is SonicMoE's (arXiv:2512.14080): rows are gathered by the products' own loads, SwiGLU
and its gradient run in the products' epilogues, the gates' gradient needs no expert outputs, and a
separate kernel sums each token's outputs (atomics would change bits from run to run). Only the
pre-activations H are saved for the backward pass, or just the inputs if the caller recomputes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.kernels.triton_layer import Factor, combine, down_grad, gate_up, project, weight_grad
from model.kernels.triton_sort import Visits, sort_visits
from model.kernels.triton_tiling import rows_of_a_tile

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, P = T·K visits.


def routed_experts(
    x_TD: Tensor,
    expert_TK: Tensor,
    gate_TK: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    recompute: bool = False,
) -> Tensor:
    """See :func:`model.experts.routed_experts`; bfloat16, float16 or float32 on a CUDA device."""
    y_TD: Tensor = _RoutedExperts.apply(x_TD, gate_TK, w_gate_up, w_down, expert_TK, recompute)
    return y_TD


class _RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gate_TK: Tensor,
        w_gate_up: Tensor,
        w_down: Tensor,
        expert_TK: Tensor,
        recompute: bool,
    ) -> Tensor:
        x_TD, gate_TK, w_gate_up, w_down, expert_TK = (
            t.contiguous() for t in (x_TD, gate_TK, w_gate_up, w_down, expert_TK)
        )
        tile_rows = rows_of_a_tile(expert_TK.numel() / len(w_down))
        visits = sort_visits(expert_TK, len(w_down), tile_rows)
        keep = any(ctx.needs_input_grad) and not recompute
        h_P2W, a_PW = gate_up(visits, Factor(x_TD), Factor(w_gate_up), keep=keep)
        y_TD = combine(visits, project(visits, Factor(a_PW), Factor(w_down)), gate_TK)
        ctx.save_for_backward(x_TD, gate_TK, w_gate_up, w_down, h_P2W, visits.workspace)
        ctx.cut = expert_TK.shape, len(w_down), tile_rows
        return y_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gate_TK, w_gate_up, w_down, h_P2W, workspace = ctx.saved_tensors
        visits = Visits.of(workspace, *ctx.cut)
        if h_P2W is None:
            h_P2W, _ = gate_up(visits, Factor(x_TD), Factor(w_gate_up), keep=True)
        dy_TD = grads[0].contiguous()
        dh_P2W, weighted_PW, dgate_TK = down_grad(
            visits, Factor(dy_TD), Factor(w_down), h_P2W, gate_TK
        )
        d_w_down = weight_grad(visits, weighted_PW, dy_TD)
        d_w_gate_up = weight_grad(visits, dh_P2W, x_TD)
        dx_TD = combine(visits, project(visits, Factor(dh_P2W), Factor(w_gate_up)))
        return dx_TD, dgate_TK, d_w_gate_up, d_w_down, None, None
