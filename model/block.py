"""One transformer block: attention, then a dense or mixture feed-forward, each on a residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import halves
from model.attention import Attention
from model.balance import RoutingRequest, RoutingStats
from model.config import ModelConfig
from model.layers import RMSNorm, Rotary, SwiGLU
from model.moe import MoE

# Shapes: B sequences, T positions, D model width.


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, kernel: str | None = None) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.attention = Attention(config.attention, width, config.norm_eps)
        self.feed_forward_norm = RMSNorm(width, config.norm_eps)
        self.feed_forward: SwiGLU | MoE
        if config.moe is not None and config.is_moe_layer(layer):
            self.feed_forward = MoE(config.moe, width, kernel)
        else:
            self.feed_forward = SwiGLU(width, config.dense_width)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, request: RoutingRequest
    ) -> tuple[Tensor, RoutingStats | None]:
        """The block's output and, from a mixture, what its router did."""
        x_BTD = halves.attend(x_BTD, self.attention_norm, self.attention, rotary)
        if isinstance(self.feed_forward, MoE):
            return halves.mix(x_BTD, self.feed_forward_norm, self.feed_forward, request)
        return halves.feed_forward(x_BTD, self.feed_forward_norm, self.feed_forward), None


def run_block(
    block: nn.Module, *inputs: Any, recompute: bool
) -> tuple[Tensor, RoutingStats | None]:
    """``block(*inputs)``; with ``recompute`` only the inputs are kept for the backward pass.

    Nothing in a block is random, so the random state need not be kept for that.
    """
    found: tuple[Tensor, RoutingStats | None]
    if recompute and torch.is_grad_enabled():
        found = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    else:
        found = block(*inputs)
    return found
