"""The optimizer's step over all parameters as single calls into ``adamw.cpp``."""

from __future__ import annotations

import ctypes
import logging
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.kernels import step
from model.kernels.compiled import NoCompiledKernel, load_library

logger = logging.getLogger(__name__)


class Adam(NamedTuple):
    """AdamW's numbers for a step."""

    lr: float
    beta1: float
    beta2: float
    eps: float


class Slot(NamedTuple):
    """A parameter with its gradient and its state: all float32, contiguous, of one shape."""

    weight: Tensor
    grad: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor
    """Updates so far, a single number."""


def serves(tensors: Sequence[Tensor]) -> bool:
    """Whether the compiled operations can take all of these."""
    return (
        step.serves(*tensors) and all(t.is_contiguous() for t in tensors) and _library() is not None
    )


def global_norm(tensors: Sequence[Tensor]) -> float:
    """Norm of all values together."""
    squared: float = _call("wt_squared_norm", _sizes(tensors), _addresses(tensors))
    return squared**0.5


def scale(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply all values, in place."""
    _call("wt_scale", _sizes(tensors), _addresses(tensors), factor)


def update(slots: Sequence[Slot], decays: Sequence[float], adam: Adam) -> None:
    """One step of AdamW (arXiv:1711.05101), in place; ``decays``: each parameter's weight decay."""
    columns = [_addresses(column) for column in zip(*slots, strict=True)]
    sizes = _sizes([slot.weight for slot in slots])
    _call("wt_adamw", sizes, *columns, array("f", decays), *adam)


def _sizes(tensors: Sequence[Tensor]) -> array[int]:
    return array("q", [t.numel() for t in tensors])


def _addresses(tensors: Sequence[Tensor]) -> array[int]:
    return array("Q", [t.data_ptr() for t in tensors])


def _call(name: str, sizes: array[int], *arguments: Any) -> Any:
    """Arrays become their addresses; whoever calls keeps the tensors alive."""
    library = _library()
    assert library is not None
    plain = (a.buffer_info()[0] if isinstance(a, array) else a for a in (sizes, *arguments))
    return getattr(library, name)(len(sizes), *plain, torch.get_num_threads())


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = load_library(Path(__file__).with_name("adamw.cpp"))
    except NoCompiledKernel as error:
        logger.warning("the optimizer's step is left to the framework: %s", error)
        return None
    size, flag, pointer = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
    single, double = ctypes.c_float, ctypes.c_double
    library.wt_squared_norm.argtypes = [size, pointer, pointer, flag]
    library.wt_squared_norm.restype = double
    library.wt_scale.argtypes = [size, pointer, pointer, single, flag]
    library.wt_scale.restype = None
    library.wt_adamw.argtypes = [size, *[pointer] * 7, *[double] * 4, flag]
    library.wt_adamw.restype = None
    return library
