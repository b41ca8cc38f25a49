"""Loss by position in the sequence: what a longer context is worth."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor


def position_bounds(sequence_length: int) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and the length: each range of positions twice as long as the one before."""
    doubling = [2**power for power in range(sequence_length.bit_length())]
    return (0, *(bound for bound in doubling if bound < sequence_length), sequence_length)


def mean_by_range(nats_T: Tensor) -> tuple[tuple[int, float], ...]:
    """(first position, mean) of each range of :func:`position_bounds`."""
    bounds = position_bounds(len(nats_T))
    return tuple((a, nats_T[a:b].mean().item()) for a, b in pairwise(bounds))
