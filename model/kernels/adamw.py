"""The optimizer's step over all parameters as single calls into ``adamw.cpp``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
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
        "wt_adamw": [SIZE, *[POINTER] * 7, *[c_double] * 5],
    },
    results={"wt_squared_norm": c_double},
)


class Adam(NamedTuple):
    """AdamW's numbers for a step."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    clip: float = 1.0
    """Factor on every gradient."""


class Slots(NamedTuple):
    """Parameters, their gradients and their state, in one order: all contiguous float32."""

    weights: Sequence[Tensor]
    grads: Sequence[Tensor]
    means: Sequence[Tensor]
    squares: Sequence[Tensor]
    steps: Sequence[Tensor]
    """Updates so far, single numbers."""


class Lined(NamedTuple):
    """The sizes of tensors, and their addresses column by column. It keeps none of them alive."""

    sizes: array[int]
    columns: Sequence[array[int]]


def serves(tensors: Sequence[Tensor]) -> bool:
    """Whether the compiled operations accept all of these."""
    return step.serves_in_place(*tensors) and operations.library is not None


def global_norm(tensors: Sequence[Tensor]) -> float:
    """Norm of all values together."""
    return _norm(line_up([tensors]))


def scale(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply all values, in place."""
    _call("wt_scale", line_up([tensors]), factor)


def line_up(columns: Sequence[Sequence[Tensor]]) -> Lined:
    """Tensors for a call; those of a row have the same size."""
    sizes = array("q", [t.numel() for t in columns[0]])
    return Lined(sizes, [array("Q", [t.data_ptr() for t in column]) for column in columns])


def norm_of_grads(slots: Lined) -> float:
    """:func:`global_norm` of the gradients of :class:`Slots`."""
    return _norm(Lined(slots.sizes, slots.columns[1:2]))


def update(slots: Lined, decays: array[float], adam: Adam) -> None:
    """One step of AdamW (arXiv:1711.05101) on :class:`Slots`, in place.

    ``decays``: each parameter's weight decay, as C floats.
    """
    _call("wt_adamw", slots, decays.buffer_info()[0], *adam)


def _norm(lined: Lined) -> float:
    squared: float = _call("wt_squared_norm", lined)
    return squared**0.5


def _call(name: str, lined: Lined, *others: float) -> Any:
    addresses = [each.buffer_info()[0] for each in (lined.sizes, *lined.columns)]
    return operations(name, len(lined.sizes), *addresses, *others)
