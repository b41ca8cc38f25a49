"""The products of the expert layer on a GPU, each one launch over tensors.

A factor is a tensor, or in FP8 its one-byte numbers and their scales; results of FP8 factors are
bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.kernels import triton_products as products
from model.kernels.triton_launch import launch, multiprocessors, quotient_up
from model.kernels.triton_sort import Visits
from model.kernels.triton_tiling import Tiling, power_of_2, tiling

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, P = T·K visits.


FP8_RESULT = torch.bfloat16
"""What products of FP8 factors are stored in."""


class Factor(NamedTuple):
    """Numbers, and in FP8 what 128 of a row, or 128 x 128 of the matrices, are multiplied by."""

    values: Tensor
    scale: Tensor | None = None
    """float32 [columns / 128, rows] of rows, [E, M / 128, N / 128] of matrices."""

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Both; without scales the values again, which a kernel then does not read."""
        return self.values, self.values if self.scale is None else self.scale

    def empty(self, *shape: int) -> Tensor:
        """Room for a result."""
        dtype = self.values.dtype if self.scale is None else FP8_RESULT
        return self.values.new_empty(shape, dtype=dtype)

    @property
    def settings(self) -> dict[str, object]:
        """What a kernel must know of its factors."""
        exact = self.values.dtype == torch.float32
        return {"SCALED": self.scale is not None, "PRECISION": "ieee" if exact else "tf32"}


def gate_up(visits: Visits, x: Factor, w: Factor, *, keep: bool) -> tuple[Tensor | None, Tensor]:
    """(H [P, 2W] where it is kept, A [P, W]) of the tokens ``x`` [T, D] and ``w`` [E, 2W, D]."""
    _, twice_width, width = w.values.shape
    expert_width, num_visits = twice_width // 2, visits.slot_P.numel()
    columns = 2 * max(expert_width, 16)
    cut = tiling("gate_up", visits.tile_rows, columns, width, x.values.dtype)
    cut = cut._replace(cols=cut.cols // 2)
    a_PW = x.empty(num_visits, expert_width)
    h_P2W = x.empty(num_visits, twice_width) if keep else None
    launch(
        products.gate_up,
        _programs(visits, expert_width, cut),
        *x.pair,
        *w.pair,
        a_PW if h_P2W is None else h_P2W,
        a_PW,
        visits.slot_P,
        *visits.tables,
        x.values.shape[0],
        visits.top_k,
        D=width,
        W=expert_width,
        ROWS=cut.rows,
        COLS=cut.cols,
        DEPTH=cut.depth,
        KEEP=keep,
        **x.settings,
        warps=cut.warps,
        stages=cut.stages,
    )
    return h_P2W, a_PW


def project(visits: Visits, left: Factor, w: Factor, *, m_innermost: bool = False) -> Tensor:
    """left [P, M] times each visit's matrix of ``w`` [E, M, N], or with M innermost [N, E, M]."""
    depth, (experts, width) = left.values.shape[1], (w.values.shape[0], w.values.shape[2])
    if m_innermost:
        width, experts, _ = w.values.shape
    cut = tiling("project", visits.tile_rows, width, depth, left.values.dtype)
    out_PN = left.empty(left.values.shape[0], width)
    launch(
        products.project,
        _programs(visits, width, cut),
        *left.pair,
        *w.pair,
        out_PN,
        *visits.tables,
        out_PN.shape[0],
        M=depth,
        N=width,
        W_E=depth if m_innermost else depth * width,
        W_M=1 if m_innermost else width,
        W_N=experts * depth if m_innermost else 1,
        ROWS=cut.rows,
        COLS=cut.cols,
        DEPTH=cut.depth,
        **left.settings,
        warps=cut.warps,
        stages=cut.stages,
    )
    return out_PN


def down_grad(
    visits: Visits, dy: Factor, w_down: Factor, h_P2W: Tensor, gate_TK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of H, gate · A, and the gradients of the gates."""
    _, expert_width, width = w_down.values.shape
    cut = tiling("down_grad", visits.tile_rows, expert_width, width, dy.values.dtype)
    strips = quotient_up(expert_width, cut.cols)
    dh_P2W = torch.empty_like(h_P2W)
    weighted_PW = dy.empty(h_P2W.shape[0], expert_width)
    dgate_TKS = gate_TK.new_empty(*gate_TK.shape, strips, dtype=torch.float32)
    launch(
        products.down_grad,
        _programs(visits, expert_width, cut),
        *dy.pair,
        *w_down.pair,
        h_P2W,
        gate_TK,
        dh_P2W,
        weighted_PW,
        dgate_TKS,
        visits.slot_P,
        *visits.tables,
        dy.values.shape[0],
        visits.top_k,
        D=width,
        W=expert_width,
        ROWS=cut.rows,
        COLS=cut.cols,
        DEPTH=cut.depth,
        **dy.settings,
        warps=cut.warps,
        stages=cut.stages,
    )
    dgate_TK = dgate_TKS.view_as(gate_TK) if strips == 1 else dgate_TKS.sum(-1)
    return dh_P2W, weighted_PW, dgate_TK.to(gate_TK.dtype)


def weight_grad(
    visits: Visits, left_PM: Tensor, right_TN: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """[E, M, N] in ``dtype`` (the factors'): each expert's sum of left ⊗ right[token]."""
    num_experts = visits.start_E.numel() - 1
    depth, width = left_PM.shape[1], right_TN.shape[1]
    rows = min(128, power_of_2(depth))
    visits_per_expert = left_PM.shape[0] // num_experts
    cut = tiling("weight_grad", rows, width, visits_per_expert, left_PM.dtype)
    out_EMN = left_PM.new_empty(num_experts, depth, width, dtype=dtype)
    tiles = quotient_up(depth, cut.rows) * quotient_up(width, cut.cols)
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
        PRECISION=Factor(left_PM).settings["PRECISION"],
        warps=cut.warps,
        stages=cut.stages,
    )
    return out_EMN


def combine(visits: Visits, answer_PD: Tensor, gate_TK: Tensor | None = None) -> Tensor:
    """[T, D]: a token's sum of its visits' answers, each times its gate if there are gates."""
    tokens, width = visits.slot_P.numel() // visits.top_k, answer_PD.shape[1]
    cols = min(power_of_2(width), 1024)
    tokens_at_once = 1024 // cols
    out_TD = answer_PD.new_empty(tokens, width)
    launch(
        products.combine,
        (quotient_up(tokens, tokens_at_once), quotient_up(width, cols)),
        answer_PD,
        answer_PD if gate_TK is None else gate_TK,
        visits.row_TK,
        out_TD,
        tokens,
        K=visits.top_k,
        D=width,
        TOKENS=tokens_at_once,
        COLS=cols,
        WEIGHTED=gate_TK is not None,
    )
    return out_TD


def _programs(visits: Visits, columns: int, cut: Tiling) -> tuple[int]:
    tiles = visits.most_tiles * quotient_up(columns, cut.cols)
    return (min(tiles, cut.programs * multiprocessors(visits.slot_P.device)),)
