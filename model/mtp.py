"""Multi-token prediction: one more block that predicts the token after the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.balance import RoutingRequest, RoutingStats
from model.block import Block
from model.config import ModelConfig
from model.layers import RMSNorm, Rotary

# Shapes: B sequences, T positions, D model width.


class MultiTokenPrediction(nn.Module):
    """From position t's last hidden state and the embedding of token t+1 towards token t+2."""

    def __init__(self, config: ModelConfig, kernel: str | None = None) -> None:
        super().__init__()
        width = config.hidden_size
        self.embedding_norm = RMSNorm(width, config.norm_eps)
        self.hidden_norm = RMSNorm(width, config.norm_eps)
        self.projection = nn.Linear(2 * width, width, bias=False)
        self.block = Block(config, config.num_layers, kernel)
        self.norm = RMSNorm(width, config.norm_eps)

    def forward(
        self, hidden_BTD: Tensor, next_BTD: Tensor, rotary: Rotary, request: RoutingRequest
    ) -> tuple[Tensor, RoutingStats | None]:
        """The hidden state for the shared output layer.

        Args:
            hidden_BTD: the main model's state after its final norm.
            next_BTD: the shared embedding of the next token of each position.
            rotary: tables of the same positions as the main model's.
            request: what to hand back about routing.
        """
        both = torch.cat([self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)], dim=-1)
        x_BTD, stats = self.block(self.projection(both), rotary, request)
        return self.norm(x_BTD), stats
