"""The training loss of one batch on a whole model, and its gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from model.balance import RoutingRequest
from model.training.config import BalanceConfig, TrainConfig
from model.training.learner import Gradients
from model.training.precision import computing_here
from model.transformer import Transformer


class BatchLoss(NamedTuple):
    """What a batch's forward pass gives, on the model's device."""

    total: Tensor
    """What is differentiated."""
    loss_nats: Tensor
    mtp_nats: Tensor | None
    """Of the multi-token-prediction block; None without one."""
    loads: list[Tensor]
    """Choices of each mixture layer's experts [E]."""


def weighs_routing(balance: BalanceConfig) -> bool:
    """Whether the loss has terms of the routers."""
    return balance.aux_loss_weight > 0 or balance.z_loss_weight > 0


def batch_loss(model: Transformer, windows: Tensor, train: TrainConfig) -> BatchLoss:
    """The training loss of a batch [windows, T + 1]."""
    balance = train.balance
    weigh_routing = weighs_routing(balance)
    request = RoutingRequest(losses=weigh_routing)
    with computing_here(train.precision, windows.device):
        result = model(windows[:, :-1], windows[:, 1:], request=request)
    loss, mtp_loss = result.loss_nats, result.mtp_loss_nats
    total = loss if mtp_loss is None else loss + train.mtp_loss_weight * mtp_loss
    if weigh_routing:
        for stats in result.routing:
            total = total + balance.aux_loss_weight * stats.aux_loss
            total = total + balance.z_loss_weight * stats.z_loss
    return BatchLoss(total, loss, mtp_loss, [stats.load_E for stats in result.routing])


def gone_back_by_the_caller() -> AbstractContextManager[object]:
    """Has autograd go back in the thread that asks for it, as it does on a CPU anyway.

    For a GPU it has a thread of its own; to wake that one and be woken again took 0.4 ms of a
    backward pass of 0.8 (an expert layer of 4,096 tokens on an H200, 2026-11-27).
    """
    return torch.autograd.set_multithreading_enabled(False)


def forward_backward(
    model: Transformer, windows: Tensor, train: TrainConfig, share: float = 1.0
) -> Gradients:
    """Add the gradients of the training loss of a batch [windows, T + 1] to the model's.

    ``share``: of the whole batch that these windows are; the gradients count for so much.
    """
    found = batch_loss(model, windows, train)
    with gone_back_by_the_caller():
        (found.total if share == 1 else share * found.total).backward()
    mtp_nats = 0.0 if found.mtp_nats is None else found.mtp_nats.item()
    return Gradients(found.loss_nats.item(), mtp_nats, found.loads)
