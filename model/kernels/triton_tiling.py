"""How the Triton products of the expert layer are cut into tiles: the fastest, where measured."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch


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


FP8_TILINGS = {
    "gate_up": Tiling(128, 128, 128, 8, 3),
    "project": Tiling(128, 128, 128, 8, 3),
    "down_grad": Tiling(128, 128, 128, 8, 3),
}
"""A step is as deep as a scale reaches, and no tile crosses a block of scales."""

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
"""By product and rows of a tile; columns of gate_up are gate and up together. Programs of
weight_grad load rows through an index, so that two of its stages make one buffer.

Those of 64 and 128 rows are the fastest tried on an H200 (benchmarks/tune_gpu.py, Ling-mini's layer
with 8,192 and 65,536 tokens, LOG.md); those of 16 and 32 rows were not tuned.
"""


def rows_of_a_tile(visits_per_expert: float) -> int:
    """Tall tiles use the units best, short ones waste less on the last tile of an expert."""
    return next((rows for rows in (16, 32, 64) if visits_per_expert <= rows), 128)


@cache
def tiling(product: str, rows: int, columns: int, depth: int, dtype: torch.dtype) -> Tiling:
    """How a product of ``columns`` columns summed over ``depth`` is cut into tiles of ``rows``.

    Float32 takes half as many columns and half the depth, which is as much memory. The columns of
    gate_up are those of gate and up together.
    """
    if dtype.itemsize == 1:
        return FP8_TILINGS[product]._replace(rows=rows)
    best = TILINGS[product, min(rows, 128)]
    cols, step, warps = best.cols, best.depth, best.warps
    if dtype.itemsize > 2:
        cols, step = cols // 2, step // 2
    cols, step = min(cols, power_of_2(columns)), min(step, power_of_2(depth))
    while warps > (4 if rows >= 64 else 1) and rows * cols < 2048 * warps:
        warps //= 2
    return best._replace(rows=rows, cols=cols, depth=step, warps=warps)


def power_of_2(value: int) -> int:
    """The smallest power of two from 16 on that is not below ``value``."""
    return max(16, 1 << (value - 1).bit_length())
