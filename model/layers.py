"""The parts every block is made of: RMSNorm, the partial rotary embedding, SwiGLU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import AttentionConfig

# Shapes: B sequences, T positions, D model width, N heads, H head width, R rotated width,
# W inner width of a feed-forward; `...` any leading dimensions.


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions become float32; float32 and float64 stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / rms(x) · weight, in the published order: float32, back to the input's type, weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x`` [..., width]."""
        x32 = at_least_float32(x)
        rms_inverse = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * rms_inverse).to(x.dtype) * self.weight


class Rotary:
    """Cosines and sines of the rotary embedding, computed once for a length and kept."""

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self._tables: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def tables(
        self, length: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each [length, R/2], of positions 0 .. length-1."""
        key = (length, device, dtype)
        if key not in self._tables:
            working = torch.promote_types(dtype, torch.float32)
            frequency, factor = rotary_frequencies(self.config, working)
            position = torch.arange(length, dtype=working)
            angle_TR = torch.outer(position, frequency)
            self._tables[key] = (
                (angle_TR.cos() * factor).to(device, dtype),
                (angle_TR.sin() * factor).to(device, dtype),
            )
        return self._tables[key]


def rotary_frequencies(config: AttentionConfig, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Angle per position of each rotated pair [R/2], and the factor on cosines and sines.

    Plain: base^(-2j/R), factor 1. With YaRN (arXiv:2309.00071, as transformers computes it)
    frequencies that turn often within the original context stay, those that turn rarely are
    divided by ``factor``, with a linear ramp between, and the factor 0.1·ln(factor) + 1 sharpens
    the attention.
    """
    r = config.rotary_dim
    frequency = config.rope_base ** (-torch.arange(0, r, 2, dtype=dtype) / r)
    yarn = config.yarn
    if yarn is None:
        return frequency, 1.0

    def pair_turning(rotations: float) -> float:
        """The (fractional) pair index that makes this many turns over the original context."""
        wavelengths = yarn.original_positions / (rotations * 2 * math.pi)
        return r * math.log(wavelengths) / (2 * math.log(config.rope_base))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), r - 1)
    ramp = (torch.arange(r // 2, dtype=dtype) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    frequency = frequency / yarn.factor * interpolated + frequency * (1 - interpolated)
    return frequency, 0.1 * math.log(yarn.factor) + 1.0


def rotate(x_BTNH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the leading pairs (i, i + R/2) of each head by the angles of its position."""
    half = cos_TR.shape[-1]
    first, second, rest = x_BTNH.split([half, half, x_BTNH.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), gate and up in one matrix (gate rows first)."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner_width, bias=False)
        self.down = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., D] to [..., D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
