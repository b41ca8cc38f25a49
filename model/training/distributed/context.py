"""Sequences spread over ranks: each reads two pieces, and attends to the keys of all before them.

Of 2·R pieces rank r of R has pieces r and 2·R - 1 - r: under a causal mask an early piece looks at
few keys and a late one at many, so all ranks have the same work. Keys and values are gathered whole
before each attention, their gradients summed on the way back; with grouped queries they are a small
part of the stream (arXiv:2407.21783, 3.3.2, does both).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from model.attention import Attention
from model.config import AttentionConfig
from model.layers import Rotary

# Shapes: B sequences, T positions of this rank, S positions of the whole sequence, P positions of a
# piece, N heads, H head width, R ranks, D model width.


@dataclass(frozen=True)
class Pieces:
    """Which positions of a sequence a rank has; all of them where ``group`` is None."""

    group: dist.ProcessGroup | None = None

    @property
    def ranks(self) -> int:
        """That share a sequence."""
        return 1 if self.group is None else self.group.size()

    def positions(self, length: int) -> Tensor:
        """This rank's of a sequence of ``length`` positions, ascending [T]."""
        if self.group is None:
            return torch.arange(length)
        piece = length // (2 * self.ranks)
        ends = self.ends(piece)
        return torch.cat([torch.arange(end - piece, end) for end in ends])

    def ends(self, piece: int) -> tuple[int, int]:
        """Where in the sequence this rank's pieces of ``piece`` positions end."""
        assert self.group is not None, "a whole sequence has no pieces"
        rank = self.group.rank()
        return (rank + 1) * piece, (2 * self.ranks - rank) * piece

    def rotary(self, config: AttentionConfig) -> Rotary:
        """The rotary embedding of these positions."""
        return Rotary(config) if self.group is None else _RotaryOfPieces(config, self)

    def gather(self, k_BNTH: Tensor, v_BNTH: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole sequence [B, N, S, H], in its order."""
        assert self.group is not None, "a whole sequence has nothing to gather"
        k_BNSH, v_BNSH = _Gather.apply(torch.stack([k_BNTH, v_BNTH]), self.group)
        return k_BNSH, v_BNSH


class _Gather(torch.autograd.Function):
    """The pieces of all ranks in the order of the sequence; gradients of each are summed."""

    @staticmethod
    def forward(ctx: Any, x_2BNTH: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        of_ranks = x_2BNTH.new_empty(group.size(), *x_2BNTH.shape)
        dist.all_gather([*of_ranks], x_2BNTH.contiguous(), group=group)
        # [R, 2, B, N, first or second piece, P, H]
        first, second = of_ranks.unflatten(-2, (2, -1)).unbind(-3)
        in_order = torch.cat([first, second.flip(0)])
        return in_order.movedim(0, -3).flatten(-3, -2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ranks = ctx.group.size()
        first, second = grads[0].unflatten(-2, (2 * ranks, -1)).movedim(-3, 0).chunk(2)
        of_ranks = torch.stack([first, second.flip(0)], dim=-3).flatten(-3, -2)
        mine = torch.empty_like(of_ranks[0])
        dist.reduce_scatter(mine, [*of_ranks.contiguous()], group=ctx.group)
        return mine, None


class ContextAttention(Attention):
    """In place of an :class:`~model.attention.Attention`, whose weights it takes over.

    ``model.halves`` leaves any but that very class to its own forward pass.
    """

    def __init__(self, attention: Attention, pieces: Pieces) -> None:
        nn.Module.__init__(self)  # its weights are those of `attention`
        self.config, self.pieces = attention.config, pieces
        for name, module in attention.named_children():
            self.add_module(name, module)
        if not attention.config.qk_norm:
            self.q_norm = self.k_norm = None
        if attention.output_gate is None:
            self.output_gate = None

    def _mix(self, q_BNTH: Tensor, k_BNTH: Tensor, v_BNTH: Tensor) -> Tensor:
        c, piece = self.config, q_BNTH.shape[2] // 2
        k_BNSH, v_BNSH = self.pieces.gather(k_BNTH, v_BNTH)
        mixed = [
            F.scaled_dot_product_attention(
                q_BNPH,
                k_BNSH[:, :, :end],
                v_BNSH[:, :, :end],
                attn_mask=causal_lower_right(piece, end),
                enable_gqa=c.num_heads != c.num_kv_heads,
            )
            for q_BNPH, end in zip(q_BNTH.split(piece, dim=2), self.pieces.ends(piece), strict=True)
        ]
        return torch.cat(mixed, dim=2)


class _RotaryOfPieces(Rotary):
    """Tables of this rank's positions alone: of 128K positions all would be gigabytes."""

    def __init__(self, config: AttentionConfig, pieces: Pieces) -> None:
        super().__init__(config)
        self._pieces = pieces
        self._made: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def tables(
        self, length: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Factors [T, N, H] of the positions of this rank, of which there are ``length``."""
        key = (length, device, dtype)
        if key not in self._made:
            position_T = self._pieces.positions(length * self._pieces.ranks)
            self._made[key] = self._make(position_T, device, dtype)
        return self._made[key]
