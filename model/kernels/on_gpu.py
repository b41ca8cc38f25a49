"""The door to kernels written in triton: there on a CUDA device, where triton can be imported."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor


def module_for(name: str, *tensors: Tensor) -> ModuleType | None:
    """``model.kernels.triton_<name>`` if it can work on ``tensors``, else None."""
    return _found(name) if all(tensor.is_cuda for tensor in tensors) else None


@cache
def _found(name: str) -> ModuleType | None:
    try:
        return import_module(f"model.kernels.triton_{name}")
    except ImportError:
        return None
