"""The small operations of a step on a GPU, each one pass forward and one backward. Needs triton.

Norms, the heads' norm with their rotation, and SwiGLU are a few operations an element, so a step
pays for what they read and write: the plain ways (``model.layers``, ``model.attention``) make a
tensor at every operation, in float32 between, 40 % of the GPU's time in a step of Ling-mini-2.0.
These compute in float32 and keep their inputs alone. Rows that share a weight add up its gradient
program by program, then in one sum: the same number every time on the same GPU.
"""

# Shapes: B sequences, T positions, N query heads, G key (or value) heads, H head width,
# F = (N + 2·G)·H, W inner width of a feed-forward; `...` any leading dimensions.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton_launch import launch, multiprocessors, quotient_up
from model.kernels.triton_tiling import power_of_2

TILE = 2048
"""Elements of a program's tile, 16 for each thread of four warps."""
NORM_PROGRAMS, HEADS_PROGRAMS = 6, 4
"""Programs a multiprocessor, where each adds up a weight's gradient over many rows: as many as its
registers hold (80 a thread of the norm's, 128 of the heads', compiled for sm_90)."""


class Heads(NamedTuple):
    """Sizes of the joint projection."""

    queries: int
    keys: int
    width: int
    rotary_dim: int


@triton.jit
def _norm(  # type: ignore[no-untyped-def]
    x_at, weight_at, y_at, rows, D: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    place = row[:, None].to(tl.int64) * D + column[None, :]
    weight = tl.load(weight_at + column, mask=column < D, other=0.0).to(tl.float32)
    x = tl.load(x_at + place, mask=inside, other=0.0).to(tl.float32)
    rms_inverse = tl.rsqrt(tl.sum(x * x, axis=1) / D + EPS)
    normed = (x * rms_inverse[:, None]).to(x_at.dtype.element_ty).to(tl.float32)
    tl.store(y_at + place, (normed * weight[None, :]).to(y_at.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(  # type: ignore[no-untyped-def]
    grad_at, x_at, weight_at, dx_at, partial_at, rows, D: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLS)
    weight = tl.load(weight_at + column, mask=column < D, other=0.0).to(tl.float32)
    d_weight = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        place = row[:, None].to(tl.int64) * D + column[None, :]
        x = tl.load(x_at + place, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_at + place, mask=inside, other=0.0).to(tl.float32)
        rms_inverse = tl.rsqrt(tl.sum(x * x, axis=1) / D + EPS)[:, None]
        normed = (x * rms_inverse).to(x_at.dtype.element_ty).to(tl.float32)
        d_weight += grad * normed
        v = grad * weight[None, :]
        mean = tl.sum(v * normed, axis=1) / D
        dx = (v - normed * mean[:, None]) * rms_inverse
        tl.store(dx_at + place, dx.to(dx_at.dtype.element_ty), mask=inside)
    total = tl.sum(d_weight, axis=0)
    tl.store(partial_at + tl.program_id(0) * D + column, total, mask=column < D)


@triton.jit
def _heads(  # type: ignore[no-untyped-def]
    qkv_at, q_weight_at, k_weight_at, cos_at, sin_at, out_at, rows, length, N: tl.constexpr,
    G: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLS)
    partner = tl.where(column < HALF, column + HALF, column - HALF)
    partner = tl.where(column < 2 * HALF, partner, column)
    q_weight = tl.load(q_weight_at + column, mask=column < H, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_at + column, mask=column < H, other=0.0).to(tl.float32)
    q_across = tl.load(q_weight_at + partner, mask=column < H, other=0.0).to(tl.float32)
    k_across = tl.load(k_weight_at + partner, mask=column < H, other=0.0).to(tl.float32)

    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = row // (N + G), row % (N + G)
    is_query = (head < N)[:, None]
    inside = (row < rows)[:, None] & (column < H)[None, :]
    begin = qkv_at + (token.to(tl.int64) * ((N + 2 * G) * H) + head * H)[:, None]
    x = tl.load(begin + column[None, :], mask=inside, other=0.0).to(tl.float32)
    across = tl.load(begin + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    rms_inverse = tl.rsqrt(tl.sum(x * x, axis=1) / H + EPS)[:, None]
    x = (x * rms_inverse).to(qkv_at.dtype.element_ty).to(tl.float32)
    across = (across * rms_inverse).to(qkv_at.dtype.element_ty).to(tl.float32)
    x = x * tl.where(is_query, q_weight[None, :], k_weight[None, :])
    across = across * tl.where(is_query, q_across[None, :], k_across[None, :])

    angle = ((token % length) * ((N + G) * H))[:, None] + column[None, :]
    cos = tl.load(cos_at + angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_at + angle, mask=inside, other=0.0).to(tl.float32)
    place = row[:, None].to(tl.int64) * H + column[None, :]
    tl.store(out_at + place, (x * cos + across * sin).to(out_at.dtype.element_ty), mask=inside)


@triton.jit
def _head_grad(  # type: ignore[no-untyped-def]
    dq_at, dk_at, dv_at, batch, position, head, column, inside, q_B, q_N, q_T, k_B, k_N, k_T, v_B,
    v_N, v_T, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    batch, position, head = batch.to(tl.int64), position.to(tl.int64), head.to(tl.int64)
    is_query, is_value = (head < N)[:, None], (head >= N + G)[:, None]
    at_q = (batch * q_B + head * q_N + position * q_T)[:, None] + column[None, :]
    at_k = (batch * k_B + (head - N) * k_N + position * k_T)[:, None] + column[None, :]
    at_v = (batch * v_B + (head - N - G) * v_N + position * v_T)[:, None] + column[None, :]
    dq = tl.load(dq_at + at_q, mask=inside & is_query, other=0.0).to(tl.float32)
    is_key = (is_query == 0) & (is_value == 0)
    dk = tl.load(dk_at + at_k, mask=inside & is_key, other=0.0).to(tl.float32)
    dv = tl.load(dv_at + at_v, mask=inside & is_value, other=0.0).to(tl.float32)
    return dq + dk + dv


@triton.jit
def _heads_backward(  # type: ignore[no-untyped-def]
    dq_at, dk_at, dv_at, qkv_at, q_weight_at, k_weight_at, cos_at, sin_at, d_qkv_at, partial_at,
    rows, length, q_B, q_N, q_T, k_B, k_N, k_T, v_B, v_N, v_T, N: tl.constexpr, G: tl.constexpr,
    H: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLS)
    partner = tl.where(column < HALF, column + HALF, column - HALF)
    partner = tl.where(column < 2 * HALF, partner, column)
    q_weight = tl.load(q_weight_at + column, mask=column < H, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_at + column, mask=column < H, other=0.0).to(tl.float32)
    d_q_weight = tl.zeros((COLS,), tl.float32)
    d_k_weight = tl.zeros((COLS,), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        token, head = row // (N + 2 * G), row % (N + 2 * G)
        batch, position = token // length, token % length
        is_query, is_value = (head < N)[:, None], (head >= N + G)[:, None]
        inside = (row < rows)[:, None] & (column < H)[None, :]
        grad = _head_grad(
            dq_at, dk_at, dv_at, batch, position, head, column, inside, q_B, q_N, q_T, k_B, k_N,
            k_T, v_B, v_N, v_T, N, G,
        )  # fmt: skip
        across = _head_grad(
            dq_at, dk_at, dv_at, batch, position, head, partner, inside, q_B, q_N, q_T, k_B, k_N,
            k_T, v_B, v_N, v_T, N, G,
        )  # fmt: skip
        angle = (position * ((N + G) * H))[:, None]
        cos = tl.load(cos_at + angle + column[None, :], mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_at + angle + partner[None, :], mask=inside, other=0.0).to(tl.float32)
        turned = grad * cos + across * sin

        place = row[:, None].to(tl.int64) * H + column[None, :]
        x = tl.load(qkv_at + place, mask=inside, other=0.0).to(tl.float32)
        rms_inverse = tl.rsqrt(tl.sum(x * x, axis=1) / H + EPS)[:, None]
        normed = (x * rms_inverse).to(qkv_at.dtype.element_ty).to(tl.float32)
        along = turned * normed
        d_q_weight += tl.sum(tl.where(is_query, along, 0.0), axis=0)
        d_k_weight += tl.sum(tl.where(is_query | is_value, 0.0, along), axis=0)
        v = turned * tl.where(is_query, q_weight[None, :], k_weight[None, :])
        mean = tl.sum(v * normed, axis=1) / H
        dx = tl.where(is_value, grad, (v - normed * mean[:, None]) * rms_inverse)
        tl.store(d_qkv_at + place, dx.to(d_qkv_at.dtype.element_ty), mask=inside)
    begin = partial_at + tl.program_id(0) * (2 * H)
    tl.store(begin + column, d_q_weight, mask=column < H)
    tl.store(begin + H + column, d_k_weight, mask=column < H)


@triton.jit
def _swiglu(  # type: ignore[no-untyped-def]
    gate_up_at, y_at, rows, W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (column < W)[None, :]
    place = row[:, None].to(tl.int64) * (2 * W) + column[None, :]
    gate = tl.load(gate_up_at + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_at + place + W, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    place = row[:, None].to(tl.int64) * W + column[None, :]
    tl.store(y_at + place, y.to(y_at.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(  # type: ignore[no-untyped-def]
    grad_at, gate_up_at, d_gate_up_at, rows, W: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (column < W)[None, :]
    place = row[:, None].to(tl.int64) * W + column[None, :]
    grad = tl.load(grad_at + place, mask=inside, other=0.0).to(tl.float32)
    place = row[:, None].to(tl.int64) * (2 * W) + column[None, :]
    gate = tl.load(gate_up_at + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_at + place + W, mask=inside, other=0.0).to(tl.float32)
    opened = tl.sigmoid(gate)
    d_gate = grad * up * opened * (1 + gate * (1 - opened))
    d_up = grad * gate * opened
    tl.store(d_gate_up_at + place, d_gate.to(d_gate_up_at.dtype.element_ty), mask=inside)
    tl.store(d_gate_up_at + place + W, d_up.to(d_gate_up_at.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``model.layers.rms_norm`` with one weight for all rows."""
    y: Tensor = _Norm.apply(x, weight_D, eps)
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x, weight_D = x.contiguous(), weight_D.contiguous()
        y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight_D.dtype))
        rows, sizes = _rows(x)
        grid = (quotient_up(rows, sizes["ROWS"]),)
        launch(_norm, grid, x, weight_D, y, rows, D=x.shape[-1], EPS=eps, **sizes)
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D = ctx.saved_tensors
        dx, width = torch.empty_like(x), x.shape[-1]
        rows, sizes = _rows(x)
        most = NORM_PROGRAMS * multiprocessors(x.device)
        programs = min(quotient_up(rows, sizes["ROWS"]), most)
        partial = x.new_empty(programs, width, dtype=torch.float32)
        tensors = (grad.contiguous(), x, weight_D, dx, partial)
        launch(_norm_backward, (programs,), *tensors, rows, D=width, EPS=ctx.eps, **sizes)
        return dx, partial.sum(0).to(weight_D.dtype), None


def heads(
    qkv_BTF: Tensor,
    q_weight_H: Tensor,
    k_weight_H: Tensor,
    tables: tuple[Tensor, Tensor],
    eps: float,
    sizes: Heads,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys [B, N or G, T, H], normalised and rotated, and values, as they were.

    Args:
        qkv_BTF: the joint projection, all queries, all keys, then all values.
        q_weight_H: of the queries' norm.
        k_weight_H: of the keys'.
        tables: cosines and sines [T, N + G, H] of ``model.layers.Rotary``.
        eps: of the norms.
        sizes: of the heads.
    """
    q, k, v = _HeadsOf.apply(qkv_BTF, q_weight_H, k_weight_H, *tables, eps, sizes)
    return q, k, v


class _HeadsOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_BTF: Tensor,
        q_weight_H: Tensor,
        k_weight_H: Tensor,
        cos_TNH: Tensor,
        sin_TNH: Tensor,
        eps: float,
        sizes: Heads,
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv_BTF = qkv_BTF.contiguous()
        batch, length, _ = qkv_BTF.shape
        turned = sizes.queries + sizes.keys
        out_BTNH = qkv_BTF.new_empty(batch, length, turned, sizes.width)
        rows, tile = _rows(out_BTNH)
        launch(
            _heads,
            (quotient_up(rows, tile["ROWS"]),),
            qkv_BTF,
            q_weight_H,
            k_weight_H,
            cos_TNH,
            sin_TNH,
            out_BTNH,
            rows,
            length,
            **_constants(sizes, eps),
            **tile,
        )
        ctx.save_for_backward(qkv_BTF, q_weight_H, k_weight_H, cos_TNH, sin_TNH)
        ctx.eps, ctx.sizes = eps, sizes
        q, k = out_BTNH.transpose(1, 2).split([sizes.queries, sizes.keys], dim=1)
        values = qkv_BTF.view(batch, length, -1, sizes.width)[:, :, turned:]
        return q, k, values.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_BTF, q_weight_H, k_weight_H, cos_TNH, sin_TNH = ctx.saved_tensors
        sizes: Heads = ctx.sizes
        grads = tuple(g if g.stride(-1) == 1 else g.contiguous() for g in grads)
        d_qkv_BTF = torch.empty_like(qkv_BTF)
        rows, tile = _rows(qkv_BTF.view(-1, sizes.width))
        most = HEADS_PROGRAMS * multiprocessors(qkv_BTF.device)
        programs = min(quotient_up(rows, tile["ROWS"]), most)
        partial = qkv_BTF.new_empty(programs, 2, sizes.width, dtype=torch.float32)
        launch(
            _heads_backward,
            (programs,),
            *grads,
            qkv_BTF,
            q_weight_H,
            k_weight_H,
            cos_TNH,
            sin_TNH,
            d_qkv_BTF,
            partial,
            rows,
            qkv_BTF.shape[1],
            *(stride for g in grads for stride in g.stride()[:3]),
            **_constants(sizes, ctx.eps),
            **tile,
        )
        d_q_weight, d_k_weight = partial.sum(0).to(q_weight_H.dtype)
        return d_qkv_BTF, d_q_weight, d_k_weight, None, None, None, None


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
        grid, sizes = _strips(y)
        launch(_swiglu, grid, gate_up, y, y.numel() // width, **sizes)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grad, d_gate_up = grad.contiguous(), torch.empty_like(gate_up)
        grid, sizes = _strips(grad)
        rows = grad.numel() // grad.shape[-1]
        launch(_swiglu_backward, grid, grad, gate_up, d_gate_up, rows, **sizes)
        return d_gate_up


def _rows(x: Tensor) -> tuple[int, dict[str, int]]:
    """Rows of ``x``, and the tile of whole rows that a program works on."""
    width = x.shape[-1]
    columns = power_of_2(width)
    return x.numel() // width, {"ROWS": max(1, TILE // columns), "COLS": columns}


def _strips(y: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs over a result's rows and columns, and their tile."""
    width = y.shape[-1]
    columns = min(power_of_2(width), 1024)
    rows = TILE // columns
    grid = (quotient_up(y.numel() // width, rows), quotient_up(width, columns))
    return grid, {"W": width, "ROWS": rows, "COLS": columns}


def _constants(sizes: Heads, eps: float) -> dict[str, Any]:
    half = sizes.rotary_dim // 2
    return {"N": sizes.queries, "G": sizes.keys, "H": sizes.width, "HALF": half, "EPS": eps}
