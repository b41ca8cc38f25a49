"""Grouped-query attention with QK-norm before a partial rotary embedding, and an output gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import AttentionConfig
from model.kernels import on_gpu
from model.layers import RMSNorm, Rotary, rms_norm, rotate

# Shapes: B sequences, T positions, D model width, N heads (query, then key, then value),
# H head width, F all heads' widths side by side, G outputs of the gate: N or F.


class Attention(nn.Module):
    """Causal attention; one matrix makes all queries, then all keys, then all values.

    The output gate has a matrix of its own, so that a gated model begins with the weights of the
    same model without it.
    """

    def __init__(self, config: AttentionConfig, width: int, norm_eps: float) -> None:
        super().__init__()
        self.config = config
        num_heads = config.num_heads + 2 * config.num_kv_heads
        self.qkv = nn.Linear(width, num_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.num_heads * config.head_dim, width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, norm_eps) if config.qk_norm else None
        self.output_gate = (
            nn.Linear(width, config.gate_width, bias=False) if config.gate_width else None
        )

    def forward(self, x_BTD: Tensor, rotary: Rotary) -> Tensor:
        """Mix positions: each attends to itself and those before it."""
        mixed_BNTH = self._mix(*self._prologue(self.qkv(x_BTD), rotary))
        mixed_BTF = mixed_BNTH.transpose(1, 2).flatten(2)
        if self.output_gate is not None:
            mixed_BTF = gated(mixed_BTF, self.output_gate(x_BTD))
        out: Tensor = self.out(mixed_BTF)
        return out

    def _mix(self, q_BNTH: Tensor, k_BNTH: Tensor, v_BNTH: Tensor) -> Tensor:
        """Values by how their keys answer the queries."""
        c = self.config
        return F.scaled_dot_product_attention(
            q_BNTH, k_BNTH, v_BNTH, is_causal=True, enable_gqa=c.num_heads != c.num_kv_heads
        )

    def _prologue(self, qkv_BTF: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """From the joint projection to normalised and rotated heads, the heads outermost."""
        c = self.config
        batch, length, _ = qkv_BTF.shape
        if self.q_norm is not None and self.k_norm is not None:
            weights = (self.q_norm.weight, self.k_norm.weight)
            if on_cuda := on_gpu.module_for("step", qkv_BTF, *weights):
                sizes = on_cuda.Heads(c.num_heads, c.num_kv_heads, c.head_dim, c.rotary_dim)
                tables = rotary.tables(length, qkv_BTF.device, qkv_BTF.dtype)
                heads: tuple[Tensor, Tensor, Tensor] = on_cuda.heads(
                    qkv_BTF, *weights, tables, self.q_norm.eps, sizes
                )
                return heads
        qkv_BTNH = qkv_BTF.view(batch, length, -1, c.head_dim)
        # Queries and keys stay in one tensor as long as they are treated alike.
        qk, v = qkv_BTNH.split([c.num_heads + c.num_kv_heads, c.num_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            weight_NH = torch.cat(
                [
                    self.q_norm.weight.expand(c.num_heads, -1),
                    self.k_norm.weight.expand(c.num_kv_heads, -1),
                ]
            )
            qk = rms_norm(qk.contiguous(), weight_NH, self.q_norm.eps)
        qk = rotate(qk, rotary.tables(length, qk.device, qk.dtype), c.rotary_dim)
        q, k = qk.split([c.num_heads, c.num_kv_heads], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.to(qk.dtype).transpose(1, 2)


def gated(mixed_BTF: Tensor, gate_BTG: Tensor) -> Tensor:
    """What the heads have mixed, times the sigmoid of the gate of each head or of each element."""
    share_BTG1 = gate_BTG.sigmoid()[..., None]
    return (mixed_BTF.unflatten(-1, (gate_BTG.shape[-1], -1)) * share_BTG1).flatten(-2)
