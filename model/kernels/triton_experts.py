"""The routed experts on a GPU in Triton kernels, behind autograd.

The dataflow is SonicMoE's (arXiv:2512.14080): rows are gathered by the products' own loads, SwiGLU
and its gradient happen where a product ends, the gates' gradient needs no answers, and a token's
answers are summed by a kernel of their own (an atomic sum would change bits from run to run). Kept
for the backward pass are only the pre-activations H, or nothing but the inputs where the caller
recomputes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from model.kernels import triton_products as products
from model.kernels.triton_launch import launch
from model.kernels.triton_sort import Visits, sort_visits

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, P = T·K visits.


class Tiling(NamedTuple):
    """How a product is cut up and run: a program's tile, the depth of a step, its warps and
    buffers."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int
    programs: int = 4
    """Programs a multiprocessor that share the tiles; no more than there can be tiles."""
    ahead: bool = False
    """Whether a program loads for its next tile while it stores a result."""


TILINGS = {
    ("gate_up", 128): Tiling(128, 256, 64, 8, 4),
    ("gate_up", 64): Tiling(64, 256, 64, 8, 4),
    ("gate_up", 32): Tiling(32, 256, 64, 4, 3),
    ("gate_up", 16): Tiling(16, 256, 64, 4, 3),
    ("project", 128): Tiling(128, 256, 64, 8, 4),
    ("project", 64): Tiling(64, 256, 64, 4, 2),
    ("project", 32): Tiling(32, 128, 64, 4, 3),
    ("project", 16): Tiling(16, 128, 64, 4, 3),
    ("down_grad", 128): Tiling(128, 256, 64, 8, 4),
    ("down_grad", 64): Tiling(64, 128, 64, 4, 4),
    ("down_grad", 32): Tiling(32, 128, 64, 4, 3),
    ("down_grad", 16): Tiling(16, 128, 64, 4, 3),
    ("weight_grad", 128): Tiling(128, 128, 64, 4, 3),
    ("weight_grad", 64): Tiling(64, 128, 64, 4, 5),
    ("weight_grad", 32): Tiling(32, 128, 64, 4, 5),
    ("weight_grad", 16): Tiling(16, 128, 64, 4, 5),
}
"""The fastest of those tried, by product and rows of a tile; columns of gate_up are gate and up
together.
Programs of weight_grad load rows through an index, so that two of its stages make one buffer."""


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
        h_P2W, a_PW = _gate_up(visits, x_TD, w_gate_up, keep=keep)
        y_TD = _combine(visits, _project(visits, a_PW, w_down), gate_TK)
        ctx.save_for_backward(x_TD, gate_TK, w_gate_up, w_down, h_P2W, visits.workspace)
        ctx.cut = expert_TK.shape, len(w_down), tile_rows
        return y_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gate_TK, w_gate_up, w_down, h_P2W, workspace = ctx.saved_tensors
        visits = Visits.of(workspace, *ctx.cut)
        if h_P2W is None:
            h_P2W, _ = _gate_up(visits, x_TD, w_gate_up, keep=True)
        dy_TD = grads[0].contiguous()
        dh_P2W, weighted_PW, dgate_TK = _down_grad(visits, dy_TD, w_down, h_P2W, gate_TK)
        d_w_down = _weight_grad(visits, weighted_PW, dy_TD)
        d_w_gate_up = _weight_grad(visits, dh_P2W, x_TD)
        dx_TD = _combine(visits, _project(visits, dh_P2W, w_gate_up))
        return dx_TD, dgate_TK, d_w_gate_up, d_w_down, None, None


def rows_of_a_tile(visits_per_expert: float) -> int:
    """Tall tiles use the units best, short ones waste less on the last tile of an expert."""
    return next((rows for rows in (16, 32, 64) if visits_per_expert <= rows), 128)


def _gate_up(
    visits: Visits, x_TD: Tensor, w_gate_up: Tensor, *, keep: bool
) -> tuple[Tensor | None, Tensor]:
    _, twice_width, width = w_gate_up.shape
    expert_width, num_visits = twice_width // 2, visits.slot_P.numel()
    cut = tiling("gate_up", visits.tile_rows, 2 * max(expert_width, 16), width, x_TD.dtype)
    cols = cut.cols // 2
    a_PW = x_TD.new_empty(num_visits, expert_width)
    h_P2W = x_TD.new_empty(num_visits, twice_width) if keep else None
    launch(
        products.gate_up,
        _programs(visits, expert_width, cols, cut, x_TD.device),
        x_TD,
        w_gate_up,
        a_PW if h_P2W is None else h_P2W,
        a_PW,
        visits.slot_P,
        *visits.tables,
        visits.top_k,
        D=width,
        W=expert_width,
        ROWS=cut.rows,
        COLS=cols,
        DEPTH=cut.depth,
        KEEP=keep,
        PRECISION=_precision(x_TD),
        AHEAD=cut.ahead,
        warps=cut.warps,
        stages=cut.stages,
    )
    return h_P2W, a_PW


def _project(visits: Visits, left_PM: Tensor, w_EMN: Tensor) -> Tensor:
    _, depth, width = w_EMN.shape
    cut = tiling("project", visits.tile_rows, width, depth, left_PM.dtype)
    out_PN = left_PM.new_empty(left_PM.shape[0], width)
    launch(
        products.project,
        _programs(visits, width, cut.cols, cut, left_PM.device),
        left_PM,
        w_EMN,
        out_PN,
        *visits.tables,
        M=depth,
        N=width,
        ROWS=cut.rows,
        COLS=cut.cols,
        DEPTH=cut.depth,
        PRECISION=_precision(left_PM),
        AHEAD=cut.ahead,
        warps=cut.warps,
        stages=cut.stages,
    )
    return out_PN


def _down_grad(
    visits: Visits, dy_TD: Tensor, w_down: Tensor, h_P2W: Tensor, gate_TK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of H, gate · A, and the gradients of the gates."""
    _, expert_width, width = w_down.shape
    cut = tiling("down_grad", visits.tile_rows, expert_width, width, dy_TD.dtype)
    strips = triton.cdiv(expert_width, cut.cols)
    dh_P2W = torch.empty_like(h_P2W)
    weighted_PW = dy_TD.new_empty(h_P2W.shape[0], expert_width)
    dgate_TKS = gate_TK.new_empty(*gate_TK.shape, strips, dtype=torch.float32)
    launch(
        products.down_grad,
        _programs(visits, expert_width, cut.cols, cut, dy_TD.device),
        dy_TD,
        w_down,
        h_P2W,
        gate_TK,
        dh_P2W,
        weighted_PW,
        dgate_TKS,
        visits.slot_P,
        *visits.tables,
        gate_TK.shape[1],
        D=width,
        W=expert_width,
        ROWS=cut.rows,
        COLS=cut.cols,
        DEPTH=cut.depth,
        PRECISION=_precision(dy_TD),
        AHEAD=cut.ahead,
        warps=cut.warps,
        stages=cut.stages,
    )
    dgate_TK = dgate_TKS.view_as(gate_TK) if strips == 1 else dgate_TKS.sum(-1)
    return dh_P2W, weighted_PW, dgate_TK.to(gate_TK.dtype)


def _weight_grad(visits: Visits, left_PM: Tensor, right_TN: Tensor) -> Tensor:
    num_experts = visits.start_E.numel() - 1
    depth, width = left_PM.shape[1], right_TN.shape[1]
    rows = min(128, _power_of_2(depth))
    visits_per_expert = left_PM.shape[0] // num_experts
    cut = tiling("weight_grad", rows, width, visits_per_expert, left_PM.dtype)
    out_EMN = left_PM.new_empty(num_experts, depth, width)
    tiles = triton.cdiv(depth, cut.rows) * triton.cdiv(width, cut.cols)
    launch(
        products.weight_grad,
        (num_experts * tiles,),
        left_PM,
        right_TN,
        out_EMN,
        visits.slot_P,
        visits.start_E,
        visits.top_k,
        M=depth,
        N=width,
        ROWS=cut.rows,
        COLS=cut.cols,
        DEPTH=cut.depth,
        PRECISION=_precision(left_PM),
        warps=cut.warps,
        stages=cut.stages,
    )
    return out_EMN


def _combine(visits: Visits, answer_PD: Tensor, gate_TK: Tensor | None = None) -> Tensor:
    tokens, top_k = visits.row_TK.numel() // visits.top_k, visits.top_k
    width = answer_PD.shape[1]
    cols = min(_power_of_2(width), 1024)
    tokens_at_once = 1024 // cols
    out_TD = answer_PD.new_empty(tokens, width)
    launch(
        products.combine,
        (triton.cdiv(tokens, tokens_at_once), triton.cdiv(width, cols)),
        answer_PD,
        answer_PD if gate_TK is None else gate_TK,
        visits.row_TK,
        out_TD,
        tokens,
        K=top_k,
        D=width,
        TOKENS=tokens_at_once,
        COLS=cols,
        WEIGHTED=gate_TK is not None,
    )
    return out_TD


def tiling(product: str, rows: int, columns: int, depth: int, dtype: torch.dtype) -> Tiling:
    """How a product of ``columns`` columns summed over ``depth`` is cut into tiles of ``rows``.

    Float32 takes half as many columns and half the depth, which is as much memory.
    """
    best = TILINGS[product, min(rows, 128)]
    cols, step, warps = best.cols, best.depth, best.warps
    if dtype.itemsize > 2:
        cols, step = cols // 2, step // 2
    cols, step = min(cols, _power_of_2(columns)), min(step, _power_of_2(depth))
    while warps > (4 if rows >= 64 else 1) and rows * cols < 2048 * warps:
        warps //= 2
    return best._replace(rows=rows, cols=cols, depth=step, warps=warps)


def _power_of_2(value: int) -> int:
    """The smallest power of two from 16 on that is not below ``value``."""
    return max(16, triton.next_power_of_2(value))


def _programs(
    visits: Visits, columns: int, cols: int, cut: Tiling, device: torch.device
) -> tuple[int]:
    tiles = visits.most_tiles * triton.cdiv(columns, cols)
    return (min(tiles, cut.programs * _multiprocessors(device)),)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter, which runs one program after the other
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _precision(factor: Tensor) -> str:
    return "ieee" if factor.dtype == torch.float32 else "tf32"
