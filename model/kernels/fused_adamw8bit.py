"""AdamW on moments of one byte in one pass over a parameter, on a CUDA device.

A step of 16 billion parameters moves 10 bytes for each and does little arithmetic; operation by
operation it would move twenty times as many. Held against the plain way in
``model.training.adamw8bit``: the same formulas and random bits, so that a code differs only where
the two round a last bit otherwise.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from model.training.adamw8bit import Rule


@cache
def _kernel() -> Any:
    """The compiled kernel; None where there is no triton."""
    try:
        from model.kernels import triton_adamw8bit
    except ImportError:
        return None
    return triton_adamw8bit


def serves(parameter: Tensor) -> bool:
    """Whether :func:`update` can do it."""
    return parameter.is_cuda and parameter.is_contiguous() and _kernel() is not None


def update(
    parameter: Tensor, grad: Tensor, state: dict[str, Tensor], rule: Rule, block: int
) -> None:
    """Weights and packed moments of one parameter, in place."""
    _kernel().update(parameter, grad.contiguous(), state, rule, block)
