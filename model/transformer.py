"""The language model: embedding, blocks, output layer, and the losses of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.balance import RoutingRequest, RoutingStats
from model.block import Block, run_block
from model.config import ModelConfig
from model.init import initialize
from model.layers import Embedding, RMSNorm, Rotary, at_least_float32
from model.loss import token_nats
from model.moe import MoE
from model.mtp import MultiTokenPrediction
from model.router import Router

# Shapes: B sequences, T positions, D model width, V vocabulary.

LOADS_ONLY = RoutingRequest()


@dataclass(frozen=True)
class ForwardResult:
    """Losses of every position and what the routers did."""

    token_nats_BT: Tensor
    """Cross-entropy of the next token, nats, float32."""
    mtp_token_nats_BT: Tensor | None
    """Cross-entropy of the token after the next, nats; 0 at the last position, which has none."""
    routing: tuple[RoutingStats, ...]
    """One per mixture layer, the multi-token-prediction block last."""

    @property
    def loss_nats(self) -> Tensor:
        """Mean over all positions, the language-model loss."""
        return self.token_nats_BT.mean()

    @property
    def mtp_loss_nats(self) -> Tensor | None:
        """Mean over the positions that have a token after the next."""
        nats = self.mtp_token_nats_BT
        return None if nats is None else nats[:, :-1].mean()


class Transformer(nn.Module):
    """A Ling 2.0 language model, or a dense one of the same house (``config.moe`` None)."""

    def __init__(
        self, config: ModelConfig, kernel: str | None = None, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.rotary = Rotary(config.attention)
        # Not drawn here: on the device "meta" that would import the framework's compiler, a second.
        size_VD = config.vocab_size, config.hidden_size
        self.embedding = Embedding(*size_VD, _weight=torch.empty(size_VD))
        self.blocks = nn.ModuleList(Block(config, i, kernel) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = MultiTokenPrediction(config, kernel) if config.mtp_depth else None

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, *, request: RoutingRequest = LOADS_ONLY
    ) -> ForwardResult:
        """Score ``targets_BT``, the next token of each position of ``tokens_BT`` (both int64)."""
        hidden_BTD, mtp_BTD, routing = self._hidden(tokens_BT, targets_BT, request)
        mtp_nats = None
        if mtp_BTD is not None:
            # Row by row: a flat shift would hand each row's end the next row's beginning.
            nats = self._token_nats(mtp_BTD[:, :-1], targets_BT[:, 1:])
            mtp_nats = F.pad(nats, (0, 1))
        return ForwardResult(self._token_nats(hidden_BTD, targets_BT), mtp_nats, tuple(routing))

    def logits(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Next-token logits [B, T, V] in float32, and those of the token after the next.

        The latter need each position's next token; the last position has none and is given token 0,
        as in the published code.
        """
        next_BT = F.pad(tokens_BT[:, 1:], (0, 1))
        hidden_BTD, mtp_BTD, _ = self._hidden(tokens_BT, next_BT, LOADS_ONLY)
        mtp_logits = None if mtp_BTD is None else at_least_float32(self.output(mtp_BTD))
        return at_least_float32(self.output(hidden_BTD)), mtp_logits

    def routers(self) -> Iterator[Router]:
        """The routers in the order of ``ForwardResult.routing``."""
        blocks = [*self.blocks, *([] if self.mtp is None else [self.mtp.block])]
        return (b.feed_forward.router for b in blocks if isinstance(b.feed_forward, MoE))

    def _hidden(
        self, tokens_BT: Tensor, next_BT: Tensor, request: RoutingRequest
    ) -> tuple[Tensor, Tensor | None, list[RoutingStats]]:
        x_BTD = self.embedding(tokens_BT)
        all_stats = []
        for block in self.blocks:
            x_BTD, stats = run_block(block, x_BTD, self.rotary, request, recompute=self.recompute)
            all_stats.append(stats)
        hidden_BTD, mtp_BTD = self.norm(x_BTD), None
        if self.mtp is not None:
            inputs = hidden_BTD, self.embedding(next_BT), self.rotary, request
            mtp_BTD, stats = run_block(self.mtp, *inputs, recompute=self.recompute)
            all_stats.append(stats)
        return hidden_BTD, mtp_BTD, [stats for stats in all_stats if stats is not None]

    def _token_nats(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        nats = token_nats(hidden_BTD.flatten(0, 1), self.output.weight, targets_BT.flatten())
        return nats.view_as(targets_BT)


def build_model(
    config: ModelConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    kernel: str | None = None,
    recompute: bool = False,
    drawn_on: torch.device | str = "cpu",
) -> Transformer:
    """A model with its initial values, which depend on ``config`` and ``seed`` alone.

    On device "meta" it has shapes and no values.

    Args:
        config: the model.
        seed: of the initial values.
        device: where it is.
        dtype: of its weights.
        kernel: of the routed experts, by name; None chooses.
        recompute: keep only each block's input for the backward pass.
        drawn_on: another device than the CPU draws other values of the same distributions, 16
            billion of them in seconds instead of minutes.
    """
    with torch.device("meta"):
        model = Transformer(config, kernel, recompute=recompute)
    if torch.device(device).type == "meta":
        return model.to(dtype)
    model = model.to(dtype).to_empty(device=device)
    initialize(model, config, seed, drawn_on)
    return model
