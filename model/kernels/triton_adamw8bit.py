"""AdamW on moments of one byte in one pass over a parameter, on a GPU. Needs triton.

A step of 16 billion parameters moves 10 bytes for each and does little arithmetic; operation by
operation it would move twenty times as many. Held against the plain way in
``model.training.adamw8bit``: the same formulas and random bits, so that a code differs only where
the two round a last bit otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton_launch import quotient_up

if TYPE_CHECKING:
    from model.training.adamw8bit import Rule

BLOCKS_AT_ONCE = 4
"""Blocks of one program: 1,024 elements over four warps are 8 a thread, 16 bytes of a weight. With
8 blocks a thread takes 151 registers in place of 89 (compiled for sm_90, not timed)."""


@triton.jit(do_not_specialize=["seed"])
def _update(  # type: ignore[no-untyped-def]
    weight_at,
    grad_at,
    first_at,
    first_scale_at,
    second_at,
    second_scale_at,
    count,
    kept,  # 1 - lr · weight decay
    rate,  # lr / first correction
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    inverse_correction,  # of the second moment
    eps,
    seed,
    ROUNDS_AT_RANDOM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    has_block = block * BLOCK < count
    place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = place < count
    weight = tl.load(weight_at + place, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_at + place, mask=inside, other=0.0).to(tl.float32)

    code = tl.load(first_at + place, mask=inside, other=0).to(tl.float32)
    scale = tl.load(first_scale_at + block, mask=has_block, other=0.0)
    mean = code * tl.abs(code) * (1 / 16129) * scale[:, None]
    mean = mean * beta1 + grad * one_minus_beta1
    ratio = tl.load(second_at + place, mask=inside, other=0).to(tl.float32) * (1 / 255)
    scale = tl.load(second_scale_at + block, mask=has_block, other=0.0)
    square = (ratio * ratio) * (ratio * ratio) * scale[:, None]
    square = square * beta2 + grad * grad * one_minus_beta2

    # The same hash as model.training.moments.random_bits.
    bits = place.to(tl.uint32) ^ seed.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    bits = bits ^ (bits >> 16)

    root = tl.sqrt(square * inverse_correction) + eps
    weight = weight * kept - rate * (mean / root)
    if ROUNDS_AT_RANDOM:
        raw = (weight.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)) & 0xFFFF0000
        weight = raw.to(tl.float32, bitcast=True)
    tl.store(weight_at + place, weight.to(weight_at.dtype.element_ty), mask=inside)

    scale = tl.max(tl.abs(mean), axis=1)
    steps = tl.abs(mean) * (1 / tl.maximum(scale, 2e-38))[:, None] * 16129.0
    low = tl.floor(tl.sqrt(steps))
    draw = (((bits >> 16) & 0xFF).to(tl.float32) + 0.5) * (1 / 256)
    goes_up = draw * (2 * low + 1) < steps - low * low
    code = tl.minimum(low + goes_up.to(tl.float32), 127.0)
    code = tl.where(mean < 0, -code, code)
    tl.store(first_at + place, code.to(tl.int8), mask=inside)
    tl.store(first_scale_at + block, scale, mask=has_block)

    scale = tl.max(square, axis=1)
    steps = square * (1 / tl.maximum(scale, 2e-38))[:, None] * 4228250625.0
    low = tl.floor(tl.sqrt(tl.sqrt(steps)))
    below = (low * low) * (low * low)
    above = ((low + 1) * (low + 1)) * ((low + 1) * (low + 1))
    draw = (((bits >> 24) & 0xFF).to(tl.float32) + 0.5) * (1 / 256)
    goes_up = draw * (above - below) < steps - below
    code = tl.minimum(low + goes_up.to(tl.float32), 255.0)
    code = tl.where(square > 0, tl.maximum(code, 1.0), code)
    tl.store(second_at + place, code.to(tl.uint8), mask=inside)
    tl.store(second_scale_at + block, scale, mask=has_block)


def update(
    parameter: Tensor, grad: Tensor, state: dict[str, Tensor], rule: Rule, block: int
) -> None:
    """Weights and packed moments of one parameter, in place; its gradient must be contiguous."""
    count = parameter.numel()
    programs = quotient_up(count, block * BLOCKS_AT_ONCE)
    # Not by triton_launch.launch, which keeps a program for every value of a number it has seen:
    # the rate and the seed are others at every step.
    _update[(programs,)](
        parameter,
        grad,
        state["exp_avg"],
        state["exp_avg_scale"],
        state["exp_avg_sq"],
        state["exp_avg_sq_scale"],
        count,
        1 - rule.lr * rule.weight_decay,
        rule.lr / rule.first_correction,
        rule.beta1,
        1 - rule.beta1,
        rule.beta2,
        1 - rule.beta2,
        1 / rule.second_correction,
        rule.eps,
        rule.seed,
        ROUNDS_AT_RANDOM=parameter.dtype == torch.bfloat16,
        BLOCK=block,
        BLOCKS=BLOCKS_AT_ONCE,
        num_warps=4,
    )
