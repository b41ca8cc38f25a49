"""Loss by position in the sequence: what a longer context is worth."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from model.training.config import Precision
from model.training.precision import computing_in
from model.transformer import Transformer


def position_bounds(sequence_length: int) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and the length: each range of positions twice as long as the one before."""
    doubling = [2**power for power in range(sequence_length.bit_length())]
    return (0, *(bound for bound in doubling if bound < sequence_length), sequence_length)


@torch.no_grad()
def loss_by_position(
    model: Transformer, windows_BT: Tensor, precision: Precision
) -> tuple[tuple[int, float], ...]:
    """(first position, mean nats) of each range of :func:`position_bounds`.

    ``windows_BT`` holds inputs and, one to the right, their targets.
    """
    with computing_in(precision, windows_BT.device):
        result = model(windows_BT[:, :-1], windows_BT[:, 1:])
    nats_T = result.token_nats_BT.double().mean(0)
    bounds = position_bounds(len(nats_T))
    return tuple((a, nats_T[a:b].mean().item()) for a, b in pairwise(bounds))
