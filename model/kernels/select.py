"""Which kernel computes the routed experts, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import ConfigError
from model.kernels.grouped import grouped
from model.kernels.reference import reference

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

KERNELS: dict[str, Kernel] = {"reference": reference, "grouped": grouped}


class Choice(NamedTuple):
    """A kernel's name and the reason for it, in words for a person."""

    name: str
    reason: str


def select(dtype: torch.dtype, width: int, expert_width: int, kernel: str | None = None) -> Choice:
    """The fastest kernel that can do this, or the one asked for by name."""
    if kernel is not None:
        if kernel not in KERNELS:
            raise ConfigError(f"kernel {kernel!r} is not one of: {', '.join(KERNELS)}")
        return Choice(kernel, "asked for by name")
    if dtype == torch.float64:
        return Choice("reference", "grouped_mm has no float64")
    size = dtype.itemsize
    for name, value in (("hidden_size", width), ("expert_width", expert_width)):
        if value * size % 16:
            return Choice("reference", f"grouped_mm needs rows of 16 bytes; {name} is {value}")
    return Choice("grouped", "grouped_mm takes this type and these widths")
