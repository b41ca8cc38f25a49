"""Matrix products in FP8 as Ling 2.0 trains with them, emulated or on the units of a Hopper GPU.

E4M3 with float32 scales: activations and gradients in tiles of 1x128 along the dimension that is
summed over, weights in blocks of 128x128, sums in float32, results in bfloat16 (report, FP8
training). A tile or block at the edge of a matrix is what is left of it. Weights themselves stay
float32: only what enters a product is rounded. :func:`why_emulated` says which of the two computes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import fp8 as on_cpu
from model.kernels import on_gpu

logger = logging.getLogger(__name__)

# Shapes: T rows (tokens), N outputs, K inputs, the dimension summed over.

TILE = 128
E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SMALLEST_AMAX = 1e-30
"""Keeps the scale of an all-zero tile finite."""
ROW_MULTIPLE = 16
"""Rows that the units take: a row of scales is then a whole number of 16-byte words, and so is a
row of the result. Missing ones are zeros, whose results are cut off."""
BLOCK_SCALE_MULTIPLE = 4
"""Scales of a weight along the summed dimension, padded likewise."""


class Quantized(NamedTuple):
    """Numbers of one byte, and what each tile or block of them is multiplied by."""

    values: Tensor
    """[rows, K] in E4M3."""
    scale: Tensor
    """[rows, tiles], or [row blocks, column blocks] of a weight; float32."""

    def dequantized(self) -> Tensor:
        """The numbers they stand for, float32."""
        if on_cpu.widens(*self):
            down = 1 if len(self.scale) == len(self.values) else TILE
            return on_cpu.widened(*self, down, TILE)
        return self.dequantized_plainly()

    def dequantized_plainly(self) -> Tensor:
        """:meth:`dequantized` on any device."""
        rows, columns = self.values.shape
        scale = self.scale
        if scale.shape[0] != rows:
            scale = scale.repeat_interleave(TILE, 0)[:rows]
        return self.values.float() * scale.repeat_interleave(TILE, 1)[:, :columns]


def quantize_tiles(x_TK: Tensor) -> Quantized:
    """In tiles of 1x128 along the last dimension."""
    if kernel := on_gpu.module_for("fp8", x_TK):
        return Quantized(*kernel.tiles(x_TK, TILE))
    if on_cpu.serves(x_TK):
        return Quantized(*on_cpu.rounded(x_TK, 1, TILE, SMALLEST_AMAX))
    return quantize_tiles_plainly(x_TK)


def quantize_tiles_plainly(x_TK: Tensor) -> Quantized:
    """:func:`quantize_tiles` on any device."""
    rows, columns = x_TK.shape
    tiles = _padded(x_TK.float(), 1, TILE).view(rows, -1, TILE)
    scale = tiles.abs().amax(-1).clamp_(min=SMALLEST_AMAX)
    scale /= _largest(scale)
    values = (tiles / scale[..., None]).view(rows, -1)[:, :columns]
    return Quantized(_to_e4m3(values), scale)


def quantize_blocks(w_NK: Tensor) -> Quantized:
    """In blocks of 128x128."""
    if kernel := on_gpu.module_for("fp8", w_NK):
        return Quantized(*kernel.blocks(w_NK, TILE))
    if on_cpu.serves(w_NK):
        return Quantized(*on_cpu.rounded(w_NK, TILE, TILE, SMALLEST_AMAX))
    return quantize_blocks_plainly(w_NK)


def quantize_blocks_plainly(w_NK: Tensor) -> Quantized:
    """:func:`quantize_blocks` on any device."""
    rows, columns = w_NK.shape
    padded = _padded(w_NK.float(), TILE, TILE)
    blocks = padded.view(padded.shape[0] // TILE, TILE, -1, TILE)
    scale = blocks.abs().amax((1, 3)).clamp_(min=SMALLEST_AMAX)
    scale /= _largest(scale)
    values = (blocks / scale[:, None, :, None]).view_as(padded)[:rows, :columns]
    return Quantized(_to_e4m3(values), scale)


def product(a_TK: Quantized, b_NK: Quantized, dtype: torch.dtype) -> Tensor:
    """a · bᵀ [T, N] in ``dtype``, summed in float32."""
    if not why_emulated(a_TK.values.device):
        return on_units(a_TK, b_NK, dtype)
    return emulated(a_TK, b_NK, dtype)


def emulated(a_TK: Quantized, b_NK: Quantized, dtype: torch.dtype) -> Tensor:
    """:func:`product` anywhere: the numbers that the bytes stand for, multiplied in float32."""
    a, b = a_TK.dequantized(), b_NK.dequantized()
    y_TN = a.new_empty(len(a), len(b))
    # Into a tensor that is there: autocast would take the sums in bfloat16.
    return torch.mm(a, b.T, out=y_TN).to(dtype)


@cache
def why_emulated(device: torch.device) -> str:
    """Why ``device`` does not multiply these by itself; empty if it does. Said once, in the log.

    cuBLASLt has scales of tiles and blocks from 12.9 on, for compute capability 9.0 alone.
    """
    reason = ""
    if device.type != "cuda":
        reason = f"{device.type} has no FP8 units"
    elif (found := torch.cuda.get_device_capability(device)) != (9, 0):
        reason = f"{torch.cuda.get_device_name(device)} is {found[0]}.{found[1]}, not Hopper (9.0)"
    elif not hasattr(F, "scaled_mm"):
        reason = f"torch {torch.__version__} has no scaled_mm with scales of tiles (2.10 has)"
    if reason:
        logger.info("FP8 products are emulated on %s: %s", device, reason)
    return reason


def on_units(a_TK: Quantized, b_NK: Quantized, dtype: torch.dtype) -> Tensor:
    """:func:`product` on a Hopper GPU; ``a_TK`` in tiles, ``b_NK`` in tiles or blocks."""
    a_values, a_scale, a_kind = _for_units(a_TK)
    b_values, b_scale, b_kind = _for_units(b_NK)
    y = F.scaled_mm(a_values, b_values.t(), a_scale, a_kind, b_scale, b_kind, output_dtype=dtype)
    return y[: a_TK.values.shape[0], : b_NK.values.shape[0]]


@dataclass
class Distortion:
    """What rounding did to the products of one layer when it was last looked at."""

    underflow: float = 0.0
    """Largest share of an operand's non-zero elements that became zero."""
    cosine: float = 1.0
    """Smallest cosine between the output, or the gradient it passes on, and the same in float32."""
    weight_cosine: float = 1.0
    """The same of the weight's gradient, which goes no further."""

    def see(self, operand: Tensor, quantized: Quantized) -> None:
        """One operand."""
        lost = ((operand != 0) & (quantized.values.float() == 0)).sum()
        self.underflow = max(self.underflow, (lost / operand.count_nonzero().clamp(min=1)).item())

    def see_product(self, got: Tensor, exact: Tensor, *, is_leaf: bool = False) -> None:
        """One product, and the same from the unrounded operands."""
        found = F.cosine_similarity(got.float().flatten(), exact.flatten(), dim=0, eps=1e-30)
        cosine = found.item() if exact.any() else 1.0
        if is_leaf:
            self.weight_cosine = min(self.weight_cosine, cosine)
        else:
            self.cosine = min(self.cosine, cosine)


class _Linear(torch.autograd.Function):
    """x · wᵀ; its three products each round what they read along what they sum over."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, w_NK: Tensor, watched: Distortion | None) -> Tensor:
        ctx.save_for_backward(x_TK, w_NK)
        ctx.watched = watched
        x, w = quantize_tiles(x_TK), quantize_blocks(w_NK)
        y_TN = product(x, w, torch.bfloat16)
        if watched is not None:
            watched.see(x_TK, x)
            watched.see(w_NK, w)
            with torch.autocast(x_TK.device.type, enabled=False):
                watched.see_product(y_TN, x_TK.float() @ w_NK.float().T)
        return y_TN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_TK, w_NK = ctx.saved_tensors
        (dy_TN,) = grads
        dy, w_KN = quantize_tiles(dy_TN), quantize_blocks(w_NK.T)
        dx_TK = product(dy, w_KN, torch.bfloat16)
        dy_NT, x_KT = quantize_tiles(dy_TN.T), quantize_tiles(x_TK.T)
        dw_NK = product(dy_NT, x_KT, torch.float32)
        if ctx.watched is not None:
            ctx.watched.see(dy_TN, dy)
            ctx.watched.see_product(dx_TK, dy_TN.float() @ w_NK.float())
            exact = dy_TN.float().T @ x_TK.float()
            ctx.watched.see_product(dw_NK, exact, is_leaf=True)
        return dx_TK.to(x_TK.dtype), dw_NK.to(w_NK.dtype), None


def fp8_linear(x: Tensor, w_NK: Tensor, watched: Distortion | None = None) -> Tensor:
    """x · wᵀ of ``x`` [..., K], in bfloat16.

    Args:
        x: any float type.
        w_NK: the float32 weight; so is its gradient.
        watched: takes down what the rounding did, forward and backward; None does not look.
    """
    y_TN: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), w_NK, watched)
    return y_TN.view(*x.shape[:-1], -1)


def _largest(like: Tensor) -> Tensor:
    """E4M3_MAX as a divisor. By a plain number a GPU does not divide, it multiplies with the
    reciprocal, and more than half of the quotients differ in their last bit."""
    return like.new_full((), E4M3_MAX)


def _to_e4m3(x: Tensor) -> Tensor:
    # A cast on its own would turn what rounding pushed past the largest number into none.
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def _padded(x: Tensor, row_multiple: int, column_multiple: int) -> Tensor:
    """With zeros below and to the right."""
    rows, columns = x.shape
    below, right = -rows % row_multiple, -columns % column_multiple
    return F.pad(x, (0, right, 0, below)) if below or right else x.contiguous()


def _for_units(quantized: Quantized) -> tuple[Tensor, Tensor, Any]:
    """Values and scales in the shapes and strides that the framework's product asks for.

    Scales of tiles [rows, tiles] lie column by column, those of a weight [column blocks, row
    blocks] row block by row block, each padded (pytorch, aten/src/ATen/native/cuda/ScaledBlas.cpp).
    """
    values, scale = quantized
    is_weight = scale.shape[0] != values.shape[0]
    # Padded as bytes: not every operation knows the type, and its zero is the byte 0.
    whole_rows = TILE if is_weight else ROW_MULTIPLE
    values = _padded(values.view(torch.uint8), whole_rows, TILE).view(E4M3)
    if is_weight:
        scale = _padded(scale, 1, BLOCK_SCALE_MULTIPLE).t()
        return values, scale, F.ScalingType.BlockWise128x128
    scale = _padded(scale, ROW_MULTIPLE, 1).t().contiguous().t()
    return values, scale, F.ScalingType.BlockWise1x128
