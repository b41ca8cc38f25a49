"""What a sweep will run, decided before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from model.config import require, require_positive
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    CorpusConfig,
    EvaluationConfig,
    RuntimeConfig,
    ScheduleConfig,
)
from sweeps.ladder import LadderConfig
from sweeps.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A ladder climbed under one protocol, and the variants that are compared on it."""

    name: str
    """Names the folder of the plan and the fit; runs are shared between sweeps."""
    ladder: LadderConfig
    recipe: Recipe
    corpus: CorpusConfig
    sequence_length: int
    schedule: ScheduleConfig
    balance: BalanceConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    precision: Literal["fp32", "bf16"]
    mtp_loss_weight: float
    runtime: RuntimeConfig
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Dotted path of this very config to the values tried there; every combination is run, e.g.
    ``recipe.training.peak_lr_factor: [0.5, 1, 2]``."""
    zipped: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The same, but these move together: first values, second values, and so on."""

    def __post_init__(self) -> None:
        require(
            bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name),
            f"name: {self.name!r} must be letters, digits, '-', '_' or '.', it names a folder",
        )
        require_positive(sequence_length=self.sequence_length)
        require(
            self.mtp_loss_weight >= 0, f"mtp_loss_weight must be >= 0, got {self.mtp_loss_weight}"
        )
