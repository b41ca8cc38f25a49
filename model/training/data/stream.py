"""The order of the training tokens: a pure function of the protocol and the position.

The stream is a sequence of windows of ``sequence_length + 1`` tokens (inputs, and targets one to
the right). Every window belongs to one domain. Which one is decided by a fixed table of slots, in
which each domain is spread as evenly as its weight allows; within a domain, windows follow each
other through its documents with a stride of ``sequence_length`` and begin again at the end. So any
window is found at once, whatever the batch was that came before it, and no domain is ever more than
about a window ahead of its share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.training.data.tokens import Tokens

NUM_SLOTS = 65_536
"""Windows after which the pattern of domains repeats; weights are rounded to this grain."""
FEISTEL_ROUNDS = 4


@dataclass(frozen=True)
class Mixture:
    """Which domain each window comes from, and its number within the domain."""

    domain_by_slot: NDArray[np.int16]
    rank_by_slot: NDArray[np.int32]
    """How many earlier slots have the same domain."""
    slots_by_domain: NDArray[np.int64]
    """Slots of each domain; they sum to NUM_SLOTS."""

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Mixture:
        """Domains are numbered in the order of ``weights``, which sum to 1.

        Slot k of a domain with n slots stands at (k + 1/2)/n of the table. Up to any point every
        domain has then had its share within half a slot, give or take the rounding of the others.
        """
        slots = _apportion(weights)
        domain = np.repeat(np.arange(len(slots)), slots)
        rank = np.concatenate([np.arange(n) for n in slots])
        order = np.lexsort((domain, (rank + 0.5) / slots[domain]))
        return cls(domain[order].astype(np.int16), rank[order].astype(np.int32), slots)

    def locate(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Domain of each window of the stream, and its number within that domain."""
        rounds, slot = np.divmod(windows, NUM_SLOTS)
        domain = self.domain_by_slot[slot]
        return domain, rounds * self.slots_by_domain[domain] + self.rank_by_slot[slot]

    def counts(self, num_windows: int) -> NDArray[np.int64]:
        """How many of the first ``num_windows`` windows each domain gives."""
        rounds, rest = divmod(num_windows, NUM_SLOTS)
        in_rest = np.bincount(self.domain_by_slot[:rest], minlength=len(self.slots_by_domain))
        return rounds * self.slots_by_domain + in_rest


def shuffled(index: NDArray[np.int64], size: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each of 0 .. size - 1 stands in the order that its ``key`` names: a permutation.

    A Feistel network over the next even power of two, walked until it lands below ``size`` (Black
    and Rogaway, "Ciphers with arbitrary finite domains", 2002): each place is found by itself.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = index.astype(np.uint64)
    outside = np.ones(len(out), dtype=bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for number in range(FEISTEL_ROUNDS):
            mixed = (right + key[outside] + np.uint64(number)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        out[outside] = (left << half) | right
        outside = out >= size
    return out.astype(np.int64)


def cut_windows(
    tokens: NDArray[np.integer] | Tokens, starts: NDArray[np.int64], sequence_length: int
) -> NDArray[np.int64]:
    """Windows of endlessly repeated ``tokens`` that begin at ``starts``: [starts, length + 1]."""

    positions = starts[:, None] + np.arange(sequence_length + 1)
    return tokens[positions % len(tokens)].astype(np.int64)


def _apportion(weights: Mapping[str, float]) -> NDArray[np.int64]:
    """Slots by largest remainder, so that they sum to NUM_SLOTS."""
    shares = np.array(list(weights.values())) * NUM_SLOTS
    slots = np.floor(shares).astype(np.int64)
    most_cut = np.argsort(-(shares - slots), kind="stable")
    slots[most_cut[: NUM_SLOTS - slots.sum()]] += 1
    for (name, weight), count in zip(weights.items(), slots, strict=True):
        if weight > 0 and count == 0:
            raise ConfigError(
                f"data.weights.{name}: {weight:g} is too small; the smallest share is "
                f"{1 / NUM_SLOTS:.2g}, or 0 to leave the domain out of training"
            )
    return slots
