"""What is a model of this size, and how is a model of this size trained.

Two halves: :class:`ShapeRecipe` turns a size into a :class:`~model.config.ModelConfig`,
:class:`TrainingRecipe` turns a compute budget into learning rate, batch and betas. A promoted run
uses the same recipe as the rungs it was predicted from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PowerLawRule:
    """value = coefficient · train_flops ** exponent."""

    coefficient: float
    exponent: float


@dataclass(frozen=True, kw_only=True)
class ShapeRecipe:
    """Ratios held along the ladder; the width decides the rest."""

    width_multiple: int
    """Widths are multiples of this."""
    head_dim: int
    heads_per_kv_head: int
    """Query heads sharing one key-value head, at most (Ling: 4)."""
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
    dense: bool = False
    """A dense model of equal active width in place of experts (the baseline of leverage)."""


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
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Both halves."""

    name: str
    shape: ShapeRecipe
    training: TrainingRecipe
