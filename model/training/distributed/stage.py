"""One pipeline stage: some of a model's blocks, under the names they have in the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.balance import RoutingRequest, RoutingStats
from model.block import Block, run_block
from model.config import ModelConfig
from model.layers import RMSNorm
from model.loss import token_nats
from model.mtp import MultiTokenPrediction
from model.router import Router
from model.training.config import Precision
from model.training.distributed.context import Pieces
from model.training.precision import computing_in
from model.utilisation import LayerCounts, layer_counts

# Shapes: B sequences, T positions of this rank, A of them that have a token after the next, D model
# width, V vocabulary, H prediction heads (1 or 2).

NEXT_EMBEDDING = "next_embedding"
"""The last stage's copy of the embedding, for the prediction block."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What is on one stage."""

    layers: range
    is_first: bool
    is_last: bool


@dataclass(frozen=True, kw_only=True)
class RoutingWeights:
    """Factors on the routers' losses; of one forward pass they are divided by the passes a step."""

    request: RoutingRequest
    aux: float
    z: float


DETAILED = RoutingRequest(detail=True)
"""What an evaluation asks of the routers."""


class _AddLoss(torch.autograd.Function):
    """The input unchanged; a loss of its own joins the total (its gradient is 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        return x.clone()  # FSDP's hooks want no view

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0].new_ones(())


class Stage(nn.Module):
    """Tokens or hidden states in; hidden states, or each position's nats, out."""

    def __init__(
        self,
        config: ModelConfig,
        plan: StagePlan,
        *,
        precision: Precision,
        recompute: bool,
        routing: RoutingWeights,
        pieces: Pieces,
    ) -> None:
        super().__init__()
        self.config, self.plan, self.pieces = config, plan, pieces
        self.precision: Precision = precision
        self.recompute, self.routing = recompute, routing
        self.rotary = pieces.rotary(config.attention)
        width = config.hidden_size
        if plan.is_first:
            self.embedding = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleDict({str(i): Block(config, i) for i in plan.layers})
        if plan.is_last:
            self.norm = RMSNorm(width, config.norm_eps)
            self.output = nn.Linear(width, config.vocab_size, bias=False)
            if config.mtp_depth:
                self.mtp = MultiTokenPrediction(config)
                if not plan.is_first:
                    self.next_embedding = nn.Embedding(config.vocab_size, width)
        self.passes = 1
        """Forward passes of a step, all ranks together: their routing losses are averaged."""
        self.loads: list[list[Tensor]] = []
        """Of every forward pass since the list was emptied, the choices of each mixture layer."""
        self.counts: list[list[LayerCounts]] = []
        """The same in detail, of evaluations only."""

    def forward(self, x: Tensor, targets_BT: Tensor, after_BA: Tensor) -> Tensor:
        """``x``: tokens [B, T] on the first stage, else hidden states [B, T, D].

        ``targets_BT`` are the next tokens; ``after_BA`` those after them, of all positions but the
        last of the sequence, which is the last of the rank that has it.

        Returns [B, T, D], or on the last stage nats [B, T, H]: of the next token, and of the one
        after it (0 where there is none).
        """
        stats: list[RoutingStats] = []
        is_training = torch.is_grad_enabled()
        with computing_in(self.precision, x.device):
            if self.plan.is_first:
                x = self.embedding(x)
            for block in self.blocks.values():
                x = self._run(block, stats, x)
            if self.plan.is_last:
                x = self._nats(x, targets_BT, after_BA, stats)
        for found in stats:
            if self.routing.request.losses and is_training:
                assert found.aux_loss is not None, "asked for"
                assert found.z_loss is not None, "asked for"
                loss = self.routing.aux * found.aux_loss + self.routing.z * found.z_loss
                x = _AddLoss.apply(x, loss / self.passes)
        self.loads.append([found.load_E for found in stats])
        if not is_training:
            self.counts.append([layer_counts(found) for found in stats])
        return x

    def routers(self) -> Iterator[Router]:
        """The routers in the order of the loads."""
        return (module for module in self.modules() if isinstance(module, Router))

    def _run(self, module: nn.Module, stats: list[RoutingStats], *inputs: Tensor) -> Tensor:
        request = self.routing.request if torch.is_grad_enabled() else DETAILED
        arguments = (*inputs, self.rotary, request)
        x, found = run_block(module, *arguments, recompute=self.recompute)
        if found is not None:
            stats.append(found)
        return x

    def _nats(
        self, x_BTD: Tensor, targets_BT: Tensor, after_BA: Tensor, stats: list[RoutingStats]
    ) -> Tensor:
        hidden_BTD = self.norm(x_BTD)
        nats = [self._token_nats(hidden_BTD, targets_BT)]
        if self.config.mtp_depth:
            embedding = self.embedding if self.plan.is_first else self.next_embedding
            mtp_BTD = self._run(self.mtp, stats, hidden_BTD, embedding(targets_BT))
            of_after_BA = self._token_nats(mtp_BTD[:, : after_BA.shape[1]], after_BA)
            nats.append(F.pad(of_after_BA, (0, targets_BT.shape[1] - after_BA.shape[1])))
        return torch.stack(nats, dim=-1)

    def _token_nats(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        nats = token_nats(hidden_BTD.flatten(0, 1), self.output.weight, targets_BT.flatten())
        return nats.view_as(targets_BT)
