"""How is a model of this size trained: what a user sets for all models, and the run it makes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from model.config import ModelConfig, require, require_positive
from model.training.config import (
    STANDARD_HEALTH,
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    HealthConfig,
    OptimizerConfig,
    Precision,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from sweeps.recipe import Recipe
from sweeps.shape import nearest, sizes_of


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What decides with size, tokens and seed how a run is trained; a config that trains has it."""

    recipe: Recipe
    sequence_length: int
    schedule: ScheduleConfig
    balance: BalanceConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    precision: Precision
    mtp_loss_weight: float
    health: HealthConfig = STANDARD_HEALTH
    stages: tuple[StageConfig, ...] = ()
    """What changes with the stages of the data."""

    def __post_init__(self) -> None:
        require_positive(sequence_length=self.sequence_length)
        require(
            self.mtp_loss_weight >= 0, f"mtp_loss_weight must be >= 0, got {self.mtp_loss_weight}"
        )

    def settings(self) -> dict[str, Any]:
        """These fields alone by name, for another config that has them."""
        return {part.name: getattr(self, part.name) for part in fields(TrainingSettings)}


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """What runs that share a trunk take in place of their own tokens."""

    shortest: int
    """Tokens that must hold min_steps steps."""
    longest: int
    """Tokens at which the laws of learning rate and batch are read."""
    warmup_of: int
    """Tokens that schedule.warmup_frac is a share of."""


def train_for(
    settings: TrainingSettings,
    *,
    model: ModelConfig,
    tokens: int,
    seed: int,
    trunk: Trunk | None = None,
) -> TrainConfig:
    """How ``model`` is trained on about ``tokens`` tokens.

    The batch law is read at the asked compute, the batch rounded to whole sequences and held below
    ``tokens / min_steps``; the tokens are then rounded to whole batches and the learning-rate law
    is read at the compute the run really takes. With a ``trunk`` both laws are read where it says,
    so that runs of different budgets have the same first steps.
    """
    recipe, sequence_length = settings.recipe.training, settings.sequence_length
    schedule = settings.schedule
    _, flops = sizes_of(model, sequence_length)
    shortest, laws_at = (tokens, tokens) if trunk is None else (trunk.shortest, trunk.longest)
    wanted = recipe.batch_factor * recipe.batch_tokens(flops.house * laws_at)
    most = max(1, shortest // (recipe.min_steps * sequence_length))
    batch_tokens = min(most, max(1, nearest(wanted / sequence_length))) * sequence_length
    whole_tokens = max(1, nearest(tokens / batch_tokens)) * batch_tokens
    if trunk is None:
        laws_at = whole_tokens
        _refuse_overlap(schedule, whole_tokens)
    else:
        require(
            schedule.warmup_tokens is None,
            f"schedule.warmup_tokens ({schedule.warmup_tokens}): runs that share a trunk warm up "
            "over schedule.warmup_frac of the smallest budget; give that",
        )
        warmup = schedule.warmup_frac * trunk.warmup_of
        schedule = replace(schedule, warmup_tokens=nearest(warmup))
    return TrainConfig(
        tokens=whole_tokens,
        batch_tokens=batch_tokens,
        sequence_length=sequence_length,
        seed=seed,
        optimizer=OptimizerConfig(
            kind=recipe.optimizer,
            muon=recipe.muon if recipe.optimizer == "muon" else None,
            peak_lr=recipe.peak_lr_factor * recipe.peak_lr(flops.house * laws_at),
            beta1=recipe.beta1,
            beta2=recipe.beta2,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
        ),
        schedule=schedule,
        balance=settings.balance,
        evaluation=settings.evaluation,
        checkpoint=settings.checkpoint,
        precision=settings.precision,
        mtp_loss_weight=settings.mtp_loss_weight,
        health=settings.health,
        stages=settings.stages,
    )


def _refuse_overlap(schedule: ScheduleConfig, tokens: int) -> None:
    """Of a warm-up in tokens; one in fractions is refused where the schedule is made."""
    if schedule.warmup_tokens is None or schedule.kind not in ("wsd", "wsm"):
        return
    stable = tokens - round(schedule.decay_frac * tokens)
    require(
        schedule.warmup_tokens <= stable,
        f"schedule.warmup_tokens ({schedule.warmup_tokens}) and decay_frac ({schedule.decay_frac}) "
        f"overlap in a run of {tokens} tokens: its decay begins after {stable}",
    )
