"""Rounding to E4M3 in tiles and blocks on a CPU, and back, as single calls into ``fp8.cpp``.

The plain way (:mod:`model.fp8`) is ten operations of the framework; the numbers are the same to the
last bit. Where a model's experts see a few tokens each, the operations are what FP8 costs there.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.kernels.compiled import NoCompiledKernel, load_library

logger = logging.getLogger(__name__)

E4M3 = torch.float8_e4m3fn


def serves(x: Tensor) -> bool:
    """Whether the compiled operations take this matrix; it may be a transposed one."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and 1 in x.stride()
        and x.numel() > 0
        and _library() is not None
    )


def rounded(x: Tensor, down: int, across: int, smallest: float) -> tuple[Tensor, Tensor]:
    """``x`` [rows, columns] in E4M3, with a scale for each tile of ``down`` by ``across`` numbers.

    Args:
        x: one that :func:`serves` said yes to.
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
    library = _library()
    assert library is not None
    source, bytes_, scales = x.data_ptr(), values.data_ptr(), scale.data_ptr()
    tile = down, across, smallest, int(transposed)
    library.wt_to_e4m3(rows, columns, stride, source, kind, *tile, bytes_, scales)
    return values, scale


def widened(values: Tensor, scale: Tensor, down: int, across: int) -> Tensor:
    """What :func:`rounded` found, as the float32 numbers [rows, columns] that it stands for."""
    y = torch.empty(values.shape)
    library = _library()
    assert library is not None
    pointers = values.data_ptr(), scale.data_ptr()
    library.wt_from_e4m3(*values.shape, *pointers, down, across, y.data_ptr())
    return y


def widens(values: Tensor, scale: Tensor) -> bool:
    """Whether :func:`widened` takes these."""
    return (
        values.device.type == "cpu"
        and values.is_contiguous()
        and scale.is_contiguous()
        and values.numel() > 0
        and _library() is not None
    )


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = load_library(Path(__file__).with_name("fp8.cpp"))
    except NoCompiledKernel as error:
        logger.warning("rounding to FP8 is left to the framework: %s", error)
        return None
    size, flag, number, pointer = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p
    tile: list[Any] = [size, size, number, flag]
    library.wt_to_e4m3.argtypes = [size, size, size, pointer, flag, *tile, pointer, pointer]
    library.wt_from_e4m3.argtypes = [size, size, pointer, pointer, size, size, pointer]
    library.wt_to_e4m3.restype = library.wt_from_e4m3.restype = None
    return library
