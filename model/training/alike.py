"""Which runs can be trained as one stacked model: told from their configs, without torch."""

from __future__ import annotations

from dataclasses import replace

from model.training.config import (
    CheckpointConfig,
    JsonlTracker,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
)


def common_part(config: TrainConfig) -> TrainConfig:
    """Equal for configs whose runs of one model shape do the same operations at every step.

    Seed, learning rate and the other values of the optimizer, and the rate of the balance may
    differ: they are numbers, not operations. When each is saved is not science.
    """
    return replace(
        config,
        seed=0,
        optimizer=OptimizerConfig(peak_lr=1.0),
        balance=replace(config.balance, update_rate=0.0),
        checkpoint=CheckpointConfig(),
    )


def why_alone(config: TrainConfig, runtime: RuntimeConfig) -> str:
    """Why a run can't be one of several in a stack; empty if it can."""
    reasons = {
        "it has stages": bool(config.stages),
        "it shares a trunk": config.schedule.trunk,
        "it begins with given weights": config.initial_weights is not None,
        "its checkpoints are merged": config.schedule.kind == "wsm",
        "it goes back after a spike": config.health.on_spike == "rewind",
        f"its precision is {config.precision}": config.precision not in ("fp32", "bf16"),
        f"its optimizer is {config.optimizer.kind}": config.optimizer.kind == "adamw8bit",
        "a stack's weights are float32": config.precision == "bf16_weights",
        "its routers have losses of their own": config.balance.aux_loss_weight > 0
        or config.balance.z_loss_weight > 0,
        "a mirror follows one run a process": not isinstance(runtime.tracker, JsonlTracker),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
