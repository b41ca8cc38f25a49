"""Loss by position in the sequence: what a longer context is worth."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from model.training.evaluate import Forward


def position_bounds(sequence_length: int) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and the length: each range of positions twice as long as the one before."""
    doubling = [2**power for power in range(sequence_length.bit_length())]
    return (0, *(bound for bound in doubling if bound < sequence_length), sequence_length)


@torch.no_grad()
def loss_by_position(forward: Forward, windows_BT: Tensor) -> tuple[tuple[int, float], ...]:
    """(first position, mean nats) of each range of :func:`position_bounds`.

    ``windows_BT`` holds inputs and, one to the right, their targets.
    """
    nats_BT, _ = forward(windows_BT, slice(0))
    nats_T = nats_BT.double().mean(0)
    bounds = position_bounds(len(nats_T))
    return tuple((a, nats_T[a:b].mean().item()) for a, b in pairwise(bounds))
