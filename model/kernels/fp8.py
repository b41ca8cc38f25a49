"""Rounding to E4M3 in tiles and blocks on a CPU, and back, as single calls into ``fp8.cpp``.

The plain implementation (:mod:`model.fp8`) takes ten operations of the framework; results are equal
to the last bit. Where experts see few tokens each, those operations are most of what FP8 costs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.compiled import FLAG, NUMBER, POINTER, SIZE, Operations

operations = Operations(
    "fp8.cpp",
    "roundings to FP8",
    {
        "wt_to_e4m3": [SIZE, SIZE, SIZE, POINTER, FLAG, SIZE, SIZE, NUMBER, FLAG, POINTER, POINTER],
        "wt_from_e4m3": [SIZE, SIZE, POINTER, POINTER, SIZE, SIZE, POINTER],
    },
)

E4M3 = torch.float8_e4m3fn


def serves(x: Tensor) -> bool:
    """Whether the compiled operations take this matrix; it may be a transposed one."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and 1 in x.stride()
        and x.numel() > 0
        and operations.library is not None
    )


def rounded(x: Tensor, down: int, across: int, smallest: float) -> tuple[Tensor, Tensor]:
    """``x`` [rows, columns] in E4M3, with a scale for each tile of ``down`` by ``across`` numbers.

    Args:
        x: a matrix that :func:`serves` accepts.
        down: rows of a tile.
        across: columns of a tile.
        smallest: a tile's largest number counts as this at least.

    Returns:
        Values [rows, columns] and scales [tiles down, tiles across], both contiguous.
    """
    rows, columns = x.shape
    values = torch.empty(rows, columns, dtype=E4M3)
    scale = torch.empty(-(-rows // down), -(-columns // across))
    transposed = x.stride(1) != 1
    if transposed:
        rows, columns, down, across = columns, rows, across, down
    stride = x.stride(1) if transposed else x.stride(0)
    kind = int(x.dtype == torch.bfloat16)
    tile = down, across, smallest, int(transposed)
    operations("wt_to_e4m3", rows, columns, stride, x, kind, *tile, values, scale)
    return values, scale


def widened(values: Tensor, scale: Tensor, down: int, across: int) -> Tensor:
    """What :func:`rounded` found, as the float32 numbers [rows, columns] that it stands for."""
    y = torch.empty(values.shape)
    operations("wt_from_e4m3", *values.shape, values, scale, down, across, y)
    return y


def widens(values: Tensor, scale: Tensor) -> bool:
    """Whether :func:`widened` takes these."""
    return (
        values.device.type == "cpu"
        and values.is_contiguous()
        and scale.is_contiguous()
        and values.numel() > 0
        and operations.library is not None
    )
