"""The optimizer's step over all parameters as single calls into ``adamw.cpp``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import c_double
from typing import NamedTuple

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
        step.serves(*tensors)
        and all(t.is_contiguous() for t in tensors)
        and operations.library is not None
    )


def global_norm(tensors: Sequence[Tensor]) -> float:
    """Norm of all values together."""
    squared: float = operations(
        "wt_squared_norm", len(tensors), _sizes(tensors), _addresses(tensors)
    )
    return squared**0.5


def scale(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply all values, in place."""
    operations("wt_scale", len(tensors), _sizes(tensors), _addresses(tensors), factor)


def update(slots: Sequence[Slot], decays: Sequence[float], adam: Adam) -> None:
    """One step of AdamW (arXiv:1711.05101), in place; ``decays``: each parameter's weight decay."""
    columns = [_addresses(column) for column in zip(*slots, strict=True)]
    sizes = _sizes([slot.weight for slot in slots])
    operations("wt_adamw", len(slots), sizes, *columns, array("f", decays), *adam)


def _sizes(tensors: Sequence[Tensor]) -> array[int]:
    return array("q", [t.numel() for t in tensors])


def _addresses(tensors: Sequence[Tensor]) -> array[int]:
    return array("Q", [t.data_ptr() for t in tensors])
