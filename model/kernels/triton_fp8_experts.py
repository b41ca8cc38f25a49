"""The routed experts on a Hopper GPU with FP8 products, as Ling 2.0 scales them.

E4M3 with float32 scales: tokens, activations and their gradients in tiles of 1x128 along the
dimension summed over, weights in blocks of 128x128, sums in float32 (report, FP8 training). The
weights' gradients are taken in bfloat16 from the same values unrounded: they go no further, and
both their factors would have to be rounded again along the tokens. Ling rounds those too, so here
is one rounding less than there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.fp8 import TILE
from model.kernels.triton_fp8 import blocks, tiles
from model.kernels.triton_layer import (
    FP8_RESULT,
    Factor,
    combine,
    down_grad,
    gate_up,
    project,
    weight_grad,
)
from model.kernels.triton_sort import Visits, sort_visits
from model.kernels.triton_tiling import rows_of_a_tile

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, P = T·K visits.


def routed_experts(
    x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, w_gate_up: Tensor, w_down: Tensor
) -> Tensor:
    """See :func:`model.experts.routed_experts`; bfloat16 out, gradients in their inputs' types.

    Both widths must be multiples of 128 and the device must multiply E4M3
    (:func:`model.kernels.select.has_fused_fp8`).
    """
    y_TD: Tensor = _RoutedExperts.apply(x_TD, gate_TK, w_gate_up, w_down, expert_TK)
    return y_TD


def tiled(x: Tensor) -> Factor:
    """``x`` [rows, columns] in E4M3, each 128 numbers of a row with a scale."""
    values, scale = tiles(x, TILE)
    return Factor(values, scale.t())


def blocked(w_EMN: Tensor) -> Factor:
    """``w`` in E4M3, each block of 128 x 128 with a scale."""
    values, scale = blocks(w_EMN.flatten(0, 1), TILE)
    return Factor(values.view_as(w_EMN), scale)


def turned(w_EMN: Tensor, upright: Factor) -> Factor:
    """The same numbers with M innermost, as a product that sums over M needs them: [N, E, M]."""
    experts, m, n = w_EMN.shape
    values, _ = blocks(w_EMN.flatten(0, 1).t(), TILE)
    return Factor(values.view(n, experts, m), upright.scale)


class _RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gate_TK: Tensor,
        w_gate_up: Tensor,
        w_down: Tensor,
        expert_TK: Tensor,
    ) -> Tensor:
        rounded_TD = x_TD.to(FP8_RESULT).contiguous()
        gate_TK, expert_TK = gate_TK.contiguous(), expert_TK.contiguous()
        w_gate_up, w_down = w_gate_up.contiguous(), w_down.contiguous()
        w_in, w_out = blocked(w_gate_up), blocked(w_down)
        tile_rows = rows_of_a_tile(expert_TK.numel() / len(w_down))
        visits = sort_visits(expert_TK, len(w_down), tile_rows)
        keep = any(ctx.needs_input_grad)
        h_P2W, a_PW = gate_up(visits, tiled(rounded_TD), w_in, keep=keep)
        answer_PD = project(visits, tiled(a_PW), turned(w_down, w_out), m_innermost=True)
        w_in_turned = turned(w_gate_up, w_in) if keep else w_in
        kept = (rounded_TD, gate_TK, h_P2W, *w_in_turned, *w_out, visits.workspace)
        ctx.save_for_backward(*kept)
        ctx.cut = expert_TK.shape, len(w_down), tile_rows
        ctx.dtypes = x_TD.dtype, w_gate_up.dtype, w_down.dtype
        return combine(visits, answer_PD, gate_TK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gate_TK, h_P2W, *weights, workspace = ctx.saved_tensors
        w_in_turned, w_out = Factor(*weights[:2]), Factor(*weights[2:])
        visits = Visits.of(workspace, *ctx.cut)
        x_dtype, w_in_dtype, w_out_dtype = ctx.dtypes
        dy_TD = grads[0].to(FP8_RESULT).contiguous()
        dh_P2W, weighted_PW, dgate_TK = down_grad(visits, tiled(dy_TD), w_out, h_P2W, gate_TK)
        d_w_down = weight_grad(visits, weighted_PW, dy_TD, w_out_dtype)
        d_w_gate_up = weight_grad(visits, dh_P2W, x_TD, w_in_dtype)
        dx_PD = project(visits, tiled(dh_P2W), w_in_turned, m_innermost=True)
        dx_TD = combine(visits, dx_PD).to(x_dtype)
        return dx_TD, dgate_TK, d_w_gate_up, d_w_down, None
