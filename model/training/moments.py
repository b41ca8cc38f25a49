"""Adam's moments in one byte each: a code on a curved scale, times the largest of its block.

Block-wise quantisation as in arXiv:2110.02861 (8-bit optimizers), with other maps. There a code is
looked up in a table of 256 numbers that lie denser near 0; here it is a power:

    first moment   sign · (code / 127)²    second moment   (code / 255)⁴

A ratio of 16,129 between the largest and the smallest number of a block, and of 4.2e9: the square
of it, as the second moment is of squares. So its root, which divides the first moment, is never
lost where the first is not. Powers need no table and are the same on every device.

Rounding is up or down at random, with chances that keep the mean: a moving average with a factor
of 0.95 moves by a twentieth, less than half the distance of two low codes, and rounded to the
nearest it would stand still. The random bits are a function of the element's place and a seed, so
nothing has to be stored for a run to go on with the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Shapes: n numbers of a flat tensor, B blocks of BLOCK numbers (the last one padded with zeros).

BLOCK = 256
"""Numbers that share a scale."""
FIRST_LEVELS, SECOND_LEVELS = 127, 255
FIRST_STEPS, SECOND_STEPS = FIRST_LEVELS**2, SECOND_LEVELS**4
"""The largest codes, raised to the maps' powers."""


class Packed(NamedTuple):
    """Numbers as codes and scales."""

    codes_n: Tensor
    """int8 of a first moment, uint8 of a second."""
    scale_B: Tensor
    """Largest magnitude of each block, float32."""


def in_blocks(x_n: Tensor) -> Tensor:
    """[n] as [B, BLOCK]."""
    return F.pad(x_n, (0, -x_n.numel() % BLOCK)).view(-1, BLOCK)


def unpack_first(packed: Packed) -> Tensor:
    """[B, BLOCK], float32."""
    code = in_blocks(packed.codes_n).float()
    return code * code.abs() * (1 / FIRST_STEPS) * packed.scale_B[:, None]


def unpack_second(packed: Packed) -> Tensor:
    """[B, BLOCK], float32."""
    ratio = in_blocks(packed.codes_n).float() * (1 / SECOND_LEVELS)
    return ratio.square().square() * packed.scale_B[:, None]


def pack_first(x: Tensor, draws: Tensor) -> Packed:
    """Of ``x`` [B, BLOCK], float32; ``draws`` from (0, 1) decide the roundings."""
    scale_B = x.abs().amax(1)
    steps = x.abs() * (1 / scale_B.clamp(min=_TINY))[:, None] * FIRST_STEPS
    low = steps.sqrt().floor()
    goes_up = draws * (2 * low + 1) < steps - low.square()
    code = (low + goes_up).clamp_(max=FIRST_LEVELS)
    return Packed((code * x.sign()).to(torch.int8).view(-1), scale_B)


def pack_second(x: Tensor, draws: Tensor) -> Packed:
    """The same of a second moment. One above 0 stays so: a root divides by it."""
    scale_B = x.amax(1)
    steps = x * (1 / scale_B.clamp(min=_TINY))[:, None] * SECOND_STEPS
    low = steps.sqrt().sqrt_().floor()
    below = low.square().square()
    goes_up = draws * ((low + 1).square().square() - below) < steps - below
    code = (low + goes_up).clamp_(max=SECOND_LEVELS)
    code = torch.where(x > 0, code.clamp(min=1), code)
    return Packed(code.to(torch.uint8).view(-1), scale_B)


def random_bits(start: int, count: int, seed: int, device: torch.device) -> Tensor:
    """32 bits each for the elements ``start`` to ``start + count`` of a tensor, int32.

    An integer hash ("lowbias32" of github.com/skeeto/hash-prospector) of place and ``seed``.
    """
    first = (start + 2**31) % 2**32 - 2**31  # places beyond 2^31 wrap around
    x = torch.arange(count, dtype=torch.int32, device=device).add_(first)
    x ^= seed
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16) & 0xFFFF
    return x


def draws_of(bits: Tensor, shift: int) -> Tensor:
    """A number from (0, 1) out of eight of the ``bits``."""
    return (((bits >> shift) & 0xFF).float() + 0.5) / 256


def round_at_random(x: Tensor, bits: Tensor) -> Tensor:
    """Float32 to bfloat16, up or down with chances that keep the mean; by the low 16 ``bits``."""
    raw = (x.view(torch.int32) + (bits & 0xFFFF)) & -0x10000
    return raw.view(torch.float32).to(torch.bfloat16)


_TINY = 2e-38
"""What an all-zero block is divided by: a normal float32 number."""
