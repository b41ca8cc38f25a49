"""In which number formats a run computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp8"]


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass.

    ``bf16``: matrix products in bfloat16 from float32 master weights; norms' statistics, router and
    cross-entropy stay float32 (the model sees to the latter two itself). ``fp8``: the same for what
    :mod:`model.training.fp8` leaves alone.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
