"""Access to the kernels written in Triton: on a CUDA device, where triton can be imported."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


def module_for(name: str, *tensors: Tensor) -> ModuleType | None:
    """``model.kernels.triton_<name>`` if it can work on ``tensors``, else None.

    They compute in float32, so float64 is left to the plain implementations.
    """
    is_served = all(
        tensor.is_cuda
        and tensor.dtype != torch.float64
        and type(tensor) in (Tensor, torch.nn.Parameter)
        for tensor in tensors
    )
    return module(name) if is_served else None


@cache
def module(name: str) -> ModuleType | None:
    """``model.kernels.triton_<name>``, or None where triton is not installed."""
    try:
        return import_module(f"model.kernels.triton_{name}")
    except ImportError:
        return None
