"""Muon's step over all hidden matrices as a single call into ``muon.cpp``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import c_double
from typing import NamedTuple

from torch import Tensor

from model.kernels import step
from model.kernels.compiled import POINTER, SIZE, Operations

operations = Operations(
    "muon.cpp",
    "Muon's steps",
    {"wt_muon": [SIZE, *[POINTER] * 6, *[c_double] * 3]},
)

FLOAT_BYTES = 4


class Stack(NamedTuple):
    """Matrices of one size that lie one behind the other in a parameter."""

    start: int
    """Numbers of the parameter before the first matrix."""
    num: int
    rows: int
    cols: int


class Slot(NamedTuple):
    """A stack of a parameter, with its gradient and its momentum: all contiguous float32."""

    stack: Stack
    weights: Tensor
    grad: Tensor
    momentum: Tensor


def serves(slots: Sequence[Slot]) -> bool:
    """Whether the compiled step accepts all of these."""
    if not slots or operations.library is None:
        return False
    return step.serves_in_place(*[t for slot in slots for t in slot[1:]])


def update(slots: Sequence[Slot], *, momentum: float, decay: float, rate: float) -> None:
    """One step of :class:`model.training.muon.Muon` on all ``slots``, in place.

    ``decay``: the rate times the weight decay.
    """
    sizes = [array("q", column) for column in zip(*(s.stack[1:] for s in slots), strict=True)]
    places = [
        array(
            "Q",
            [
                t.data_ptr() + FLOAT_BYTES * slot.stack.start
                for slot, t in zip(slots, column, strict=True)
            ],
        )
        for column in list(zip(*slots, strict=True))[1:]
    ]
    addresses = [each.buffer_info()[0] for each in (*sizes, *places)]
    operations("wt_muon", len(slots), *addresses, momentum, decay, rate)
