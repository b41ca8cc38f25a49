"""Which kernel computes the routed experts, and why."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import ConfigError
from model.kernels import cpu, on_gpu
from model.kernels.compiled import NoCompiledKernel, load_library
from model.kernels.grouped import grouped
from model.kernels.reference import reference

logger = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Tokens, chosen experts, gates and both weights in; the experts' weighted sum out."""


def triton(*tensors: Tensor, recompute: bool = False) -> Tensor:
    """The Triton kernels, imported where they are used: most machines have no Triton."""
    y_TD: Tensor = _triton("experts").routed_experts(*tensors, recompute=recompute)
    return y_TD


def fp8_experts(*tensors: Tensor) -> Tensor:
    """The same with FP8 products; see :func:`has_fused_fp8`."""
    y_TD: Tensor = _triton("fp8_experts").routed_experts(*tensors)
    return y_TD


def _triton(name: str) -> ModuleType:
    module = on_gpu.module(name)
    if module is None:
        raise ConfigError("the triton kernel was asked for, and Triton is not installed")
    return module


def has_fused_fp8(x_TD: Tensor, w_down: Tensor) -> bool:
    """Whether a GPU multiplies E4M3 and both widths are whole tiles of scales."""
    if not x_TD.is_cuda or torch.cuda.get_device_capability(x_TD.device) < (8, 9):
        return False
    is_whole = all(size % 128 == 0 for size in w_down.shape[1:])
    return is_whole and on_gpu.module("fp8_experts") is not None


KERNELS: dict[str, Kernel] = {
    "reference": reference,
    "grouped": grouped,
    "cpu": cpu.routed_experts,
    "triton": triton,
}


class Choice(NamedTuple):
    """A kernel's name and the reason for it, in words for a person."""

    name: str
    reason: str


@cache
def select(
    dtype: torch.dtype,
    width: int,
    expert_width: int,
    *,
    device: str = "cpu",
    kernel: str | None = None,
) -> Choice:
    """The fastest kernel that can do this, or the one asked for by name.

    Args:
        dtype: in which the products are computed.
        width: of the model.
        expert_width: inner width of an expert.
        device: its type, "cpu" or "cuda".
        kernel: a name from ``KERNELS``; None chooses.
    """
    if kernel is not None:
        if kernel not in KERNELS:
            raise ConfigError(f"kernel {kernel!r} is not one of: {', '.join(KERNELS)}")
        return Choice(kernel, "asked for by name")
    if dtype == torch.float64:
        return Choice("reference", "only the plain loop computes in float64")
    without_compiled = ""
    if device == "cpu" and dtype in (torch.float32, torch.bfloat16):
        try:
            load_library()
        except NoCompiledKernel as error:
            without_compiled = f"; {error}"
            _say_once(f"the compiled expert kernel is left out: {error}")
        else:
            if cpu.can_multiply(dtype):
                where = _where_cpu_multiplies(dtype, width, expert_width)
                return Choice("cpu", f"compiled for this machine, products {where}")
    if device == "cuda" and dtype in (torch.float32, torch.bfloat16, torch.float16):
        if on_gpu.module("experts") is not None:
            return Choice("triton", "fused for a GPU in Triton")
        without_compiled = "; Triton is not installed"
    for name, value in (("hidden_size", width), ("expert_width", expert_width)):
        if value * dtype.itemsize % 16:
            reason = f"grouped_mm needs rows of a multiple of 16 bytes, {name} is {value}"
            return Choice("reference", reason + without_compiled)
    taken = str(dtype).removeprefix("torch.")
    return Choice("grouped", f"grouped_mm takes {taken} and these widths{without_compiled}")


def _where_cpu_multiplies(dtype: torch.dtype, width: int, expert_width: int) -> str:
    few, many = (cpu.unit_for(dtype, width, expert_width, visits) for visits in (0, math.inf))
    if few == many:
        return "on its tile unit (AMX)" if few == "tiles" else "in its vector registers"
    visits = -(-cpu.FP32_TILES_FROM_PRODUCTS // (width * expert_width))
    return f"on its tile unit (AMX) from {visits} visits an expert, else in its vector registers"


@cache
def _say_once(what: str) -> None:
    logger.warning(what)
