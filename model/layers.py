"""The parts every block is made of: RMSNorm, the partial rotary embedding, SwiGLU.

Each comes with its own backward. At the widths of a ladder's small rungs a step costs as much in
dispatching small operations as in arithmetic, and PyTorch's automatic backward of these three takes
two to four times the operations that are needed (on a CPU ``F.rms_norm`` is such a composite too).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import AttentionConfig
from model.kernels import on_gpu, step

# Shapes: B sequences, T positions, N heads, H head width, R rotated leading part of it,
# W inner width of a feed-forward; `...` any leading dimensions.


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions become float32; float32 and float64 stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Normalize(torch.autograd.Function):
    """x / rms(x) · weight over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = at_least_float32(x)
        rms_inverse = x32.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed = (x32 * rms_inverse).to(x.dtype)
        ctx.save_for_backward(normed, rms_inverse, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        # With n = x/rms and v = grad·weight: dx = (v - n·mean(v·n)) / rms.
        normed, rms_inverse, weight = ctx.saved_tensors
        (grad,) = grads
        normed32 = at_least_float32(normed)
        along = grad * normed32
        d_weight = along.sum_to_size(weight.shape).to(weight.dtype)
        mean = (along * weight).mean(-1, keepdim=True)
        dx = torch.addcmul(grad * weight, normed32, mean, value=-1).mul_(rms_inverse)
        return dx.to(normed.dtype), d_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight, in the published order: float32, back to x's type, then the weight.

    ``weight`` has the trailing shape of ``x``; only the last dimension is normalised over.
    """
    if weight.ndim == 1 and step.serves(x, weight):
        return step.rms_norm(x, weight, eps)
    if weight.ndim == 1 and (on_cuda := on_gpu.module_for("step", x, weight)):
        normed: Tensor = on_cuda.rms_norm(x, weight, eps)
        return normed
    out: Tensor = _Normalize.apply(x, weight, eps)
    return out


class RMSNorm(nn.Module):
    """:func:`rms_norm` with its weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x`` [..., width]."""
        return rms_norm(x, self.weight, self.eps)


class Embedding(nn.Embedding):
    """The framework's, as one compiled operation where that serves."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows [..., width] of the table."""
        if tokens.is_cpu and type(tokens) is Tensor and step.serves(self.weight):
            return step.embed(tokens, self.weight)
        return super().forward(tokens)


class Rotary:
    """Cosines and sines of the rotary embedding, computed once and kept."""

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self._longest: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def tables(
        self, length: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Factors [T, N, H] of positions 0 .. length-1 for :func:`rotate`, equal for all heads.

        Spelled out for every query and key head: a product with a factor that has to be repeated
        over the heads runs three times slower.
        """
        key = (device, dtype)
        if key not in self._longest or len(self._longest[key][0]) < length:
            self._longest[key] = self._make(torch.arange(length), device, dtype)
        cos, sin = self._longest[key]
        return cos[:length], sin[:length]

    def _make(
        self, position_T: Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        c, length = self.config, len(position_T)
        working = torch.promote_types(dtype, torch.float32)
        frequency, factor = rotary_frequencies(c, working)
        angle = torch.outer(position_T.to(working), frequency)
        cos, sin = angle.cos() * factor, angle.sin() * factor
        passed = torch.ones(length, c.head_dim - c.rotary_dim, dtype=working)
        cos_TH = torch.cat([cos, cos, passed], dim=-1).to(device, dtype)
        sin_TH = torch.cat([-sin, sin, torch.zeros_like(passed)], dim=-1).to(device, dtype)
        shape = (length, c.num_heads + c.num_kv_heads, c.head_dim)
        return (
            cos_TH[:, None].expand(shape).contiguous(),
            sin_TH[:, None].expand(shape).contiguous(),
        )


def rotary_frequencies(config: AttentionConfig, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Angle per position of each rotated pair [R/2], and the factor on cosines and sines.

    Plain: base^(-2j/R), factor 1. With YaRN (arXiv:2309.00071, computed as transformers does)
    pairs that turn often within the original context keep their frequency, pairs that turn rarely
    have it divided by ``factor``, with a linear ramp between; 0.1·ln(factor) + 1 on cosines and
    sines sharpens the attention. Written in the order of the published code: at position 100,000
    the last bit of a frequency is an angle of a hundredth.
    """
    r, yarn = config.rotary_dim, config.yarn
    power = config.rope_base ** (torch.arange(0, r, 2).to(dtype) / r)
    if yarn is None:
        return 1.0 / power, 1.0

    def pair_turning(rotations: float) -> float:
        """The (fractional) pair index that makes this many turns over the original context."""
        wavelength = yarn.original_positions / rotations
        return r * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_base))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), r - 1)
    ramp = (torch.arange(r // 2).to(dtype) - low) / (high - low if high > low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    frequency = (1.0 / (yarn.factor * power)) * (1 - kept) + (1.0 / power) * kept
    return frequency, 0.1 * math.log(yarn.factor) + 1.0


def _swap_halves(x: Tensor, rotary_dim: int) -> Tensor:
    """Exchange the two halves of the rotated part; the rest stays."""
    half = rotary_dim // 2
    return torch.cat([x[..., half:rotary_dim], x[..., :half], x[..., rotary_dim:]], dim=-1)


class _Rotate(torch.autograd.Function):
    """x·cos + swapped(x)·sin, with the first half's sign in ``sin``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.rotary_dim = rotary_dim
        return torch.addcmul(x * cos, _swap_halves(x, rotary_dim), sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        (grad,) = grads
        return torch.addcmul(_swap_halves(grad * sin, ctx.rotary_dim), grad, cos), None, None, None


def rotate(x_BTNH: Tensor, tables: tuple[Tensor, Tensor], rotary_dim: int) -> Tensor:
    """Turn each pair (i, i + R/2) of a head's first R dimensions by its position's angle."""
    rotated: Tensor = _Rotate.apply(x_BTNH, *tables, rotary_dim)
    return rotated


class _SwiGLU(torch.autograd.Function):
    """silu(gate)·up of [..., 2·W], gate first; silu of a strided half is slow, so it is copied."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate.contiguous()).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return swiglu_backward(grads[0], ctx.saved_tensors[0])


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up, of ``gate_up`` [..., 2·W] with the gate in the first half: [..., W]."""
    if step.serves(gate_up):
        return step.swiglu(gate_up)
    if on_cuda := on_gpu.module_for("step", gate_up):
        inner: Tensor = on_cuda.swiglu(gate_up)
        return inner
    out: Tensor = _SwiGLU.apply(gate_up)
    return out


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of :func:`swiglu` in ``gate_up`` from that in its output."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.contiguous()
    d_gate = torch.ops.aten.silu_backward(grad * up, gate)
    return torch.cat([d_gate, F.silu(gate).mul_(grad)], dim=-1)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), gate and up in one matrix (gate rows first)."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner_width, bias=False)
        self.down = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., width] to the same shape."""
        out: Tensor = self.down(swiglu(self.gate_up(x)))
        return out
