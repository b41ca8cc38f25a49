"""One optimizer step: gradients, clipping, update, balance, and what the run's state counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from model.balance import RoutingRequest, update_biases
from model.training.config import TrainConfig
from model.training.health import Health
from model.training.learner import Learner
from model.training.optim import clip_gradients, set_learning_rate
from model.training.precision import computing_in
from model.training.stages import Stage
from model.training.state import tail_begins
from model.transformer import Transformer

# Shapes: B sequences, T positions.


def take_step(
    learner: Learner,
    batch_BT: Tensor,
    config: TrainConfig,
    stage: Stage,
    lr: float,
    health: Health,
) -> str:
    """Train on one batch at the rate ``lr``, by the rules of ``stage``.

    Returns:
        Why the run has gone wrong, empty if it has not. If a loss or gradient is no number the
        weights and the state stay as they were.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    loss_nats, mtp_nats, loads = forward_backward(learner.model, batch_BT, config)
    grad_norm = clip_gradients(learner.model, config.optimizer.clip_norm)
    found = Gradients(loss_nats, mtp_nats, loads, grad_norm)
    return update(learner, found, config, stage, lr, health)


class Gradients(NamedTuple):
    """What one batch gave, besides the clipped gradients that lie on the model."""

    loss_nats: float
    mtp_nats: float
    """0 without multi-token prediction."""
    loads: Sequence[Tensor]
    """Of each mixture layer [E]."""
    grad_norm: float
    """Before clipping."""


def update(
    learner: Learner, found: Gradients, config: TrainConfig, stage: Stage, lr: float, health: Health
) -> str:
    """The second half of :func:`take_step`: from gradients to a step that is done and counted."""
    state = learner.state
    reason = health.check_finite(state.step + 1, found.loss_nats, found.grad_norm)
    if reason:
        return reason
    set_learning_rate(learner.optimizer, lr)
    learner.optimizer.step()
    update_biases(learner.model, found.loads, stage.balance)
    state.use.count(found.loads)
    state.count(found.loss_nats, found.mtp_nats, found.grad_norm)
    if state.step > tail_begins(config.num_steps):
        state.tail_steps += 1
        state.tail_nats += found.loss_nats
    state.count_tails(found.loss_nats, config.checkpoint.ends_at)
    return health.check_loss(state.step, found.loss_nats)


def forward_backward(
    model: Transformer, batch_BT: Tensor, config: TrainConfig
) -> tuple[float, float, list[Tensor]]:
    """Leave gradients of the training loss on the model.

    Returns:
        The language-model loss, the multi-token-prediction loss (0 without such a block), and the
        load of each mixture layer.
    """
    balance = config.balance
    weigh_routing = balance.aux_loss_weight > 0 or balance.z_loss_weight > 0
    request = RoutingRequest(losses=weigh_routing)
    with computing_in(config.precision, batch_BT.device):
        result = model(batch_BT[:, :-1], batch_BT[:, 1:], request=request)
    loss, mtp_loss = result.loss_nats, result.mtp_loss_nats
    total = loss if mtp_loss is None else loss + config.mtp_loss_weight * mtp_loss
    if weigh_routing:
        for stats in result.routing:
            total = total + balance.aux_loss_weight * stats.aux_loss
            total = total + balance.z_loss_weight * stats.z_loss
    total.backward()
    mtp_nats = 0.0 if mtp_loss is None else mtp_loss.item()
    return loss.item(), mtp_nats, [stats.load_E for stats in result.routing]
