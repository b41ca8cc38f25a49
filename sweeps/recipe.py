"""The recipe from size to shape and training, as it is written in YAML.

:func:`sweeps.shape.shape_for` turns a size into a model by it, :func:`sweeps.training.train_for` a
compute budget into learning rate and batch. A promoted run uses the same recipe as the rungs it was
predicted from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.config import require, require_positive
from model.training.config import MuonConfig
from sweeps.own import BUILT_IN, OwnModules


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
    output_gate: Literal["none", "headwise", "elementwise"] = "none"
    """Of attention: a sigmoid times what each head has mixed, or each element of it."""
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
    optimizer: Literal["adamw", "adamw8bit", "muon"]
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    muon: MuonConfig = field(default_factory=MuonConfig)
    """With the optimizer ``muon``."""

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
