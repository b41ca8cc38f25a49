"""One optimizer step: gradients, clipping, update, balance, and what the run's state counts."""

from __future__ import annotations

from torch import Tensor

from model.training.config import TrainConfig
from model.training.health import Health
from model.training.learner import Gradients, Learner
from model.training.stages import Stage
from model.training.state import tail_begins


def take_step(
    learner: Learner,
    windows: Tensor,
    config: TrainConfig,
    stage: Stage,
    lr: float,
    health: Health,
) -> str:
    """Train on one batch [windows, T + 1] at the rate ``lr``, by the rules of ``stage``.

    Returns:
        Why the run has gone wrong, empty if it has not. If a loss or gradient is no number the
        weights and the state stay as they were.
    """
    found = learner.forward_backward(windows)
    grad_norm = learner.clip(config.optimizer.clip_norm)
    return update(learner, found, grad_norm, config, stage, lr, health)


def update(
    learner: Learner,
    found: Gradients,
    grad_norm: float,
    config: TrainConfig,
    stage: Stage,
    lr: float,
    health: Health,
) -> str:
    """The second half of :func:`take_step`: from gradients to a step that is done and counted."""
    state = learner.state
    reason = health.check_finite(state.step + 1, found.loss_nats, grad_norm)
    if reason:
        return reason
    learner.update(lr)
    learner.balance(found.loads, stage.balance)
    state.use.count(found.loads)
    state.count(found.loss_nats, found.mtp_nats, grad_norm)
    if state.step > tail_begins(config.num_steps):
        state.tail_steps += 1
        state.tail_nats += found.loss_nats
    state.count_tails(found.loss_nats, config.checkpoint.ends_at)
    return health.check_loss(state.step, found.loss_nats)
