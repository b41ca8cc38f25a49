"""In which number formats a run computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from model.kernels import block, rounding
from model.training.config import Precision


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass.

    ``bf16``: matrix products in bfloat16 from float32 master weights; norms' statistics, router and
    cross-entropy stay float32 (the model sees to the latter two itself). ``fp8``: the same for what
    :mod:`model.training.fp8` leaves alone. ``bf16_weights``: nothing is cast, since the weights and
    so the residual stream are bfloat16 themselves; statistics, router and cross-entropy as before.
    """
    if precision in ("fp32", "bf16_weights"):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def computing_here(precision: Precision, device: torch.device) -> Iterator[None]:
    """:func:`computing_in` for a whole model in one process.

    On a CPU that multiplies bfloat16 the compiled operations do such products themselves.
    Autocast's copies of small tensors take longer than any product they make faster: a step under
    it alone takes 2 to 25 times one in float32 at widths below 128 (LOG.md, 2026-11-26).
    """
    by_itself = rounds_by_itself(precision, device)
    with computing_in(precision, device), rounding.to_bfloat16() if by_itself else nullcontext():
        yield


def rounds_by_itself(precision: Precision, device: torch.device) -> bool:
    """Whether the compiled operations do the bfloat16 products of a step."""
    return precision == "bf16" and device.type == "cpu" and block.can_round()


def weights_dtype(precision: Precision) -> torch.dtype:
    """The type of the weights that the optimizer updates."""
    return torch.bfloat16 if precision == "bf16_weights" else torch.float32
