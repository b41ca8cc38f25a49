"""In which number formats a run computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

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


def weights_dtype(precision: Precision) -> torch.dtype:
    """The type of the weights that the optimizer updates."""
    return torch.bfloat16 if precision == "bf16_weights" else torch.float32
