"""Rounding to E4M3 in tiles and blocks on a GPU, one pass each. Needs triton.

The plain implementation (:mod:`model.fp8`) reads and writes float32 five times over; this reads
each number once and writes its byte, with the same quotients to the last bit. For a transposed
operand, as both are in a weight's gradient, tiles run along the rows in memory; the strides say so.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton_launch import launch, quotient_up

ROWS = 32
"""Rows of one program of :func:`tiles`."""


@triton.jit
def _tiles(  # type: ignore[no-untyped-def]
    x_at,
    values_at,
    scale_at,
    rows,
    columns,
    row_stride,
    column_stride,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    tile = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tile * TILE + tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    down, along = row[:, None].to(tl.int64), column[None, :].to(tl.int64)
    at = x_at + down * row_stride + along * column_stride
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x), axis=1), 1e-30), 448.0)
    x = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    tl.store(values_at + down * columns + along, x.to(tl.float8e4nv), mask=inside)
    tl.store(scale_at + tile * rows + row, scale, mask=row < rows)


@triton.jit
def _blocks(  # type: ignore[no-untyped-def]
    x_at, values_at, scale_at, rows, columns, row_stride, column_stride, TILE: tl.constexpr
):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    down, along = row[:, None].to(tl.int64), column[None, :].to(tl.int64)
    at = x_at + down * row_stride + along * column_stride
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x)), 1e-30), 448.0)
    x = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    tl.store(values_at + down * columns + along, x.to(tl.float8e4nv), mask=inside)
    tl.store(scale_at + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), scale)


def tiles(x: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Values [rows, columns] and scales [rows, tiles], which lie column by column."""
    rows, columns = x.shape
    count = quotient_up(columns, tile)
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(count, rows, dtype=torch.float32, device=x.device)
    grid = quotient_up(rows, ROWS), count
    launch(_tiles, grid, x, values, scale, rows, columns, *x.stride(), TILE=tile, ROWS=ROWS)
    return values, scale.t()


def blocks(x: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Values [rows, columns] and scales [row blocks, column blocks]."""
    rows, columns = x.shape
    grid = quotient_up(rows, tile), quotient_up(columns, tile)
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(grid, dtype=torch.float32, device=x.device)
    launch(_blocks, grid, x, values, scale, rows, columns, *x.stride(), TILE=tile, warps=8)
    return values, scale
