"""The optimizer's step over all parameters as single calls into ``adamw.cpp``."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from ctypes import c_double
from typing import Any, NamedTuple

from torch import Tensor

from model.kernels import step
from model.kernels.compiled import NUMBER, POINTER, SIZE, Operations

operations = Operations(
    "adamw.cpp",
    "the optimizer's steps",
    {
        "wt_squared_norm": [SIZE, POINTER, POINTER],
        "wt_scale": [SIZE, POINTER, POINTER, NUMBER],
        "wt_adamw": [SIZE, *[POINTER] * 7, *[c_double] * 4],
    },
    results={"wt_squared_norm": c_double},
)


class Adam(NamedTuple):
    """AdamW's numbers for a step."""

    lr: float
    beta1: float
    beta2: float
    eps: float


class Slots(NamedTuple):
    """Parameters, their gradients and their state, in one order: all contiguous float32."""

    weights: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    """Updates so far, single numbers."""


def serves(tensors: Sequence[Tensor]) -> bool:
    """Whether the compiled operations can take all of these."""
    for t in tensors:
        if not t.is_contiguous():
            return False
    return step.serves(*tensors) and operations.library is not None


def global_norm(tensors: Sequence[Tensor]) -> float:
    """Norm of all values together."""
    squared: float = _call("wt_squared_norm", tensors, [tensors])
    return squared**0.5


def scale(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply all values, in place."""
    _call("wt_scale", tensors, [tensors], factor)


def update(slots: Slots, decays: Sequence[float], adam: Adam) -> None:
    """One step of AdamW (arXiv:1711.05101), in place; ``decays``: each parameter's weight decay."""
    decay = array("f", decays)
    _call("wt_adamw", slots.weights, slots, decay.buffer_info()[0], *adam)


def _call(
    name: str, sized: Sequence[Tensor], columns: Iterable[Sequence[Tensor]], *others: float
) -> Any:
    """With the sizes of ``sized`` and the addresses of each column as arrays."""
    sizes = array("q", [t.numel() for t in sized])
    arrays = [array("Q", [t.data_ptr() for t in column]) for column in columns]
    addresses = [each.buffer_info()[0] for each in (sizes, *arrays)]
    return operations(name, len(sizes), *addresses, *others)
