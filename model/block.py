"""One transformer block: attention, then a dense or mixture feed-forward, each on a residual."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import halves
from model.attention import Attention
from model.balance import RoutingRequest, RoutingStats
from model.config import ModelConfig, MoEConfig
from model.experts import RoutedExperts
from model.layers import RMSNorm, Rotary, SwiGLU
from model.moe import MoE
from model.own.build import own_or
from model.router import Router

# Shapes: B sequences, T positions, D model width.


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Each part is the built-in one, or the user's own where the config names one.
    """

    def __init__(self, config: ModelConfig, layer: int, kernel: str | None = None) -> None:
        super().__init__()
        width = config.hidden_size

        def norm() -> nn.Module:
            return own_or(config, "norm", layer, lambda: RMSNorm(width, config.norm_eps))

        def attention() -> nn.Module:
            return Attention(config.attention, width, config.norm_eps)

        self.attention_norm = norm()
        self.attention = own_or(config, "attention", layer, attention)
        self.feed_forward_norm = norm()
        self.feed_forward: nn.Module
        if config.moe is not None and config.is_moe_layer(layer):
            self.feed_forward = mixture(config, config.moe, layer, kernel)
        else:
            self.feed_forward = own_or(
                config, "feed_forward", layer, lambda: SwiGLU(width, config.dense_width)
            )

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, request: RoutingRequest
    ) -> tuple[Tensor, RoutingStats | None]:
        """The block's output and, from a mixture, what its router did."""
        x_BTD = halves.attend(x_BTD, self.attention_norm, self.attention, rotary)
        if isinstance(self.feed_forward, MoE):
            return halves.mix(x_BTD, self.feed_forward_norm, self.feed_forward, request)
        return halves.feed_forward(x_BTD, self.feed_forward_norm, self.feed_forward), None


def mixture(config: ModelConfig, moe: MoEConfig, layer: int, kernel: str | None) -> MoE:
    """The mixture of block ``layer``, with the user's router or experts where there are any."""
    width = config.hidden_size
    router = own_or(config, "router", layer, lambda: Router(moe, width))
    experts = own_or(config, "experts", layer, lambda: RoutedExperts(moe, width, kernel))
    return MoE(moe, width, router=cast(Router, router), experts=experts)


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
