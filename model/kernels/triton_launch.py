"""Launching a Triton kernel with little work on the host.

``kernel[grid](...)`` looks at every argument on every call to find the program compiled for such
arguments, which takes longer than small layers take to compute. Here one key of types, numbers and
constants finds it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_compiled: dict[tuple[object, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Tensor | int,
    warps: int = 4,
    stages: int = 3,
    **constants: object,
) -> None:
    """``kernel[grid](*args, **constants)``.

    Args:
        kernel: its arguments are ``args`` and then ``constants``, in this order.
        grid: programs.
        args: tensors of one device and whole numbers.
        warps: of a program.
        stages: of its software pipeline.
        constants: compiled into it.
    """
    # Addresses, not tensors: of each tensor Triton's launcher would ask the driver whether it is on
    # the device.
    given = [arg if type(arg) is int else arg.data_ptr() for arg in args]  # type: ignore[union-attr]
    # What of an argument a program is compiled for: a number, or a type and an alignment.
    kinds = [
        arg if type(arg) is int else (arg.dtype, address & 15)  # type: ignore[union-attr]
        for arg, address in zip(args, given, strict=True)
    ]
    key = (id(kernel), warps, stages, _device(), grid, *kinds, *constants.values())
    start = _compiled.get(key)
    if start is not None:
        start(*given, *constants.values())
        return
    names = kernel.arg_names[len(args) :]
    if names != list(constants):
        raise TypeError(f"{kernel.__name__} takes {names} behind its arguments, got {[*constants]}")
    program = kernel[grid](*args, **constants, num_warps=warps, num_stages=stages)
    if program is not None:  # the interpreter compiles nothing
        _compiled[key] = program[(*grid, 1, 1)[:3]]


def _device() -> int:
    return torch.cuda.current_device() if _on_gpu() else -1


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 for the interpreter, which runs one program after the other."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _on_gpu() -> bool:
    return torch.cuda.is_available()


def quotient_up(number: int, by: int) -> int:
    """``number / by``, rounded up. (Triton's own costs the host a microsecond.)"""
    return -(-number // by)
