"""What is a model of this size, and how is a model of this size trained.

Two halves: :class:`ShapeRecipe` turns a size into a :class:`~model.config.ModelConfig`,
:class:`TrainingRecipe` turns a compute budget into learning rate, batch and betas. A promoted run
uses the same recipe as the rungs it was predicted from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from model.accounting import FlopCounts, ParamCounts, count_params, flops_per_token
from model.config import AttentionConfig, ModelConfig, MoEConfig, require, require_positive
from model.errors import ConfigError
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
from sweeps.own import BUILT_IN, OwnModules, Sources, with_own_parts


@dataclass(frozen=True, kw_only=True)
class PowerLawRule:
    """value = coefficient · train_flops ** exponent."""

    coefficient: float
    exponent: float

    def __post_init__(self) -> None:
        require_positive(coefficient=self.coefficient)

    def __call__(self, train_flops: float) -> float:
        """The rule's value at ``train_flops``."""
        return self.coefficient * train_flops**self.exponent


@dataclass(frozen=True, kw_only=True)
class ShapeRecipe:
    """Ratios held along the ladder; the width decides the rest."""

    width_multiple: int
    """Widths are multiples of this."""
    head_dim: int
    heads_per_kv_head: int
    """Query heads sharing one key-value head (Ling: 4); the same on every rung."""
    rotary_frac: float
    """Share of each head that is rotated (Ling: 0.5)."""
    rope_base: float
    width_per_layer: float
    """Width over depth: layers = max(min_layers, round(width / width_per_layer))."""
    min_layers: int
    dense_layer_frac: float
    """Share of leading dense layers, rounded (Ling-mini: 1 of 20)."""
    dense_width_ratio: float
    """Width of a dense feed-forward over the model's (Ling-mini: 2.5)."""
    num_experts: int
    experts_per_token: int
    num_shared_experts: int
    granularity: float
    """G = 2 · width / expert width (Ling: 8)."""
    expert_width_multiple: int
    num_groups: int
    groups_per_token: int
    score: Literal["sigmoid", "softmax"]
    selection_bias: bool
    routed_scale: float
    qk_norm: bool
    mtp_depth: int
    init_std: float
    """Of a model of ``init_width`` and of wider ones (Ling: 0.006 from width 2048 on)."""
    init_width: int
    """Narrower models get init_std · sqrt(init_width / width), which keeps the size of a layer's
    output. At width 48 that is 0.039, and 0.15 nats better than 0.006 (LOG.md, 2026-11-23)."""
    dense: bool = False
    """A dense model of equal active width in place of experts (the baseline of leverage)."""

    def __post_init__(self) -> None:
        require_positive(
            width_multiple=self.width_multiple,
            head_dim=self.head_dim,
            heads_per_kv_head=self.heads_per_kv_head,
            width_per_layer=self.width_per_layer,
            min_layers=self.min_layers,
            dense_width_ratio=self.dense_width_ratio,
            granularity=self.granularity,
            init_width=self.init_width,
            expert_width_multiple=self.expert_width_multiple,
        )
        for name in ("rotary_frac", "dense_layer_frac"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be between 0 and 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Laws from train_flops to learning rate and batch, with factors a sweep may vary."""

    peak_lr: PowerLawRule
    peak_lr_factor: float
    """Multiplies the law; the axis of a learning-rate sweep."""
    batch_tokens: PowerLawRule
    batch_factor: float
    min_steps: int
    """The batch is made smaller rather than take fewer steps than this."""
    optimizer: Literal["adamw", "adamw8bit"]
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float

    def __post_init__(self) -> None:
        require_positive(
            peak_lr_factor=self.peak_lr_factor,
            batch_factor=self.batch_factor,
            min_steps=self.min_steps,
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Both halves."""

    name: str
    shape: ShapeRecipe
    training: TrainingRecipe
    modules: OwnModules = BUILT_IN
    """Parts of the block from the user's own Python."""


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """What runs that share a trunk take in place of their own tokens."""

    shortest: int
    """Tokens that must hold min_steps steps."""
    longest: int
    """Tokens at which the laws of learning rate and batch are read."""
    warmup_of: int
    """Tokens that schedule.warmup_frac is a share of."""


@lru_cache(maxsize=65_536)
def sizes_of(model: ModelConfig, sequence_length: int) -> tuple[ParamCounts, FlopCounts]:
    """Parameters and FLOPs per token; kept, since the runs of a plan share a few models."""
    return count_params(model), flops_per_token(model, sequence_length)


NEIGHBOURS = 8
"""Widths to either side of where M passes the target that are looked at."""


@lru_cache(maxsize=4096)
def shape_for(
    recipe: ShapeRecipe,
    target_flops_per_token: float,
    sequence_length: int,
    vocab_size: int,
    own: Sources = (),
) -> ModelConfig:
    """The shape whose M lies nearest to the target, in the logarithm.

    Only the width is searched, in steps of ``width_multiple``; the recipe's ratios give the rest,
    so rungs differ in size alone. The M of parts of the user's own, loaded before, is measured.

    Raises:
        ConfigError: the target is below half of the smallest shape's M, or the recipe contradicts
            itself (for instance more experts a token than experts).
    """

    def of_step(step: int) -> tuple[float, ModelConfig]:
        shape = _shape_of_width(recipe, step * recipe.width_multiple, vocab_size)
        shape = with_own_parts(shape, own, sequence_length)
        return flops_per_token(shape, sequence_length).house, shape

    if any(kind == "feed_forward" for kind, _ in own):
        recipe = replace(recipe, dense=True)  # it takes the place of the mixture
    below, above = 1, 1
    smallest, _ = of_step(1)
    while of_step(above)[0] < target_flops_per_token:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        if of_step(middle)[0] < target_flops_per_token:
            below = middle
        else:
            above = middle
    # M grows with the width but for a step down where one more leading layer turns dense, so
    # neighbours are looked at as well.
    around = [of_step(step) for step in range(max(1, below - NEIGHBOURS), above + NEIGHBOURS + 1)]
    _, best = min(around, key=lambda found: abs(math.log(found[0] / target_flops_per_token)))
    if 2 * target_flops_per_token < smallest:
        raise ConfigError(
            f"flops_per_token {target_flops_per_token:.3g} is out of reach: the smallest model of "
            f"this recipe (width {recipe.width_multiple}) needs {smallest:.3g} at sequence length "
            f"{sequence_length}; raise ladder.smallest_flops_per_token or lower "
            "recipe.shape.width_multiple"
        )
    return best


def train_for(
    recipe: TrainingRecipe,
    *,
    model: ModelConfig,
    tokens: int,
    sequence_length: int,
    seed: int,
    schedule: ScheduleConfig,
    balance: BalanceConfig,
    evaluation: EvaluationConfig,
    checkpoint: CheckpointConfig,
    precision: Precision,
    mtp_loss_weight: float,
    health: HealthConfig = STANDARD_HEALTH,
    stages: tuple[StageConfig, ...] = (),
    trunk: Trunk | None = None,
) -> TrainConfig:
    """How ``model`` is trained on about ``tokens`` tokens.

    The batch law is read at the asked compute, the batch rounded to whole sequences and held below
    ``tokens / min_steps``; the tokens are then rounded to whole batches and the learning-rate law
    is read at the compute the run really takes. With a ``trunk`` both laws are read where it says,
    so that runs of different budgets have the same first steps.
    """
    _, flops = sizes_of(model, sequence_length)
    shortest, laws_at = (tokens, tokens) if trunk is None else (trunk.shortest, trunk.longest)
    wanted = recipe.batch_factor * recipe.batch_tokens(flops.house * laws_at)
    most = max(1, shortest // (recipe.min_steps * sequence_length))
    batch_tokens = min(most, max(1, _nearest(wanted / sequence_length))) * sequence_length
    whole_tokens = max(1, _nearest(tokens / batch_tokens)) * batch_tokens
    if trunk is None:
        laws_at = whole_tokens
    else:
        warmup = schedule.warmup_frac * trunk.warmup_of
        schedule = replace(schedule, warmup_tokens=_nearest(warmup))
    return TrainConfig(
        tokens=whole_tokens,
        batch_tokens=batch_tokens,
        sequence_length=sequence_length,
        seed=seed,
        optimizer=OptimizerConfig(
            kind=recipe.optimizer,
            peak_lr=recipe.peak_lr_factor * recipe.peak_lr(flops.house * laws_at),
            beta1=recipe.beta1,
            beta2=recipe.beta2,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
        ),
        schedule=schedule,
        balance=balance,
        evaluation=evaluation,
        checkpoint=checkpoint,
        precision=precision,
        mtp_loss_weight=mtp_loss_weight,
        health=health,
        stages=stages,
    )


def _shape_of_width(recipe: ShapeRecipe, width: int, vocab_size: int) -> ModelConfig:
    num_layers = max(recipe.min_layers, _nearest(width / recipe.width_per_layer))
    num_kv_heads = max(1, _nearest(width / (recipe.head_dim * recipe.heads_per_kv_head)))
    expert_width = _multiple(2 * width / recipe.granularity, recipe.expert_width_multiple)
    moe = MoEConfig(
        num_experts=recipe.num_experts,
        experts_per_token=recipe.experts_per_token,
        num_shared_experts=recipe.num_shared_experts,
        expert_width=expert_width,
        num_groups=recipe.num_groups,
        groups_per_token=recipe.groups_per_token,
        score=recipe.score,
        routed_scale=recipe.routed_scale,
        selection_bias=recipe.selection_bias,
    )
    active_width = (recipe.experts_per_token + recipe.num_shared_experts) * expert_width
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_layers=num_layers,
        dense_width=active_width
        if recipe.dense
        else _multiple(width * recipe.dense_width_ratio, recipe.expert_width_multiple),
        attention=AttentionConfig(
            num_heads=num_kv_heads * recipe.heads_per_kv_head,
            num_kv_heads=num_kv_heads,
            head_dim=recipe.head_dim,
            rotary_dim=2 * math.floor(recipe.head_dim * recipe.rotary_frac / 2),
            rope_base=recipe.rope_base,
            qk_norm=recipe.qk_norm,
        ),
        moe=None if recipe.dense else moe,
        num_dense_layers=0 if recipe.dense else _nearest(num_layers * recipe.dense_layer_frac),
        mtp_depth=recipe.mtp_depth,
        init_std=recipe.init_std * math.sqrt(max(1.0, recipe.init_width / width)),
    )


def _nearest(value: float) -> int:
    """The nearest whole number, halves upward (Python's round goes to the even neighbour)."""
    return math.floor(value + 0.5)


def _multiple(value: float, step: int) -> int:
    return max(1, _nearest(value / step)) * step
