"""What a promotion aims at: a step up the ladder, a budget, or a published model's compute.

A target becomes an :class:`Aim`: which of compute, size and tokens it fixes. The fitted surface
chooses the rest (`windtunnel.choices`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.accounting import flops_per_token
from model.config import ModelConfig, require, require_positive
from model.errors import ConfigError
from sweeps.recipe import Recipe

LEAST_STEP = 5.0
"""A next rung nearer than this to what was measured would test the law on its own points."""


@dataclass(frozen=True, kw_only=True)
class NextRung:
    """A fixed step beyond the largest run of the sweep."""

    kind: Literal["next_rung"] = "next_rung"
    factor: float
    """Training FLOPs over those of the sweep's largest run."""
    least_size_growth: float = 0.0
    """FLOPs per token over the sweep's largest model, at least; 0 leaves it to the optimum."""

    def __post_init__(self) -> None:
        require(
            self.factor >= LEAST_STEP,
            f"factor ({self.factor:g}) must be >= {LEAST_STEP:g}, else the forecast is hardly "
            "tested; a smaller budget is target=compute",
        )
        require(
            0 <= self.least_size_growth <= self.factor,
            f"least_size_growth ({self.least_size_growth:g}) must be between 0 and "
            f"factor ({self.factor:g})",
        )


@dataclass(frozen=True, kw_only=True)
class ComputeBudget:
    """So many training FLOPs, by the house's convention."""

    kind: Literal["compute"] = "compute"
    train_flops: float

    def __post_init__(self) -> None:
        require_positive(train_flops=self.train_flops)


@dataclass(frozen=True, kw_only=True)
class GpuHours:
    """The best model for so many GPU-hours on one kind of GPU.

    Peak and utilisation are the machine plan's where they are not given (`windtunnel.recommend`).
    """

    kind: Literal["gpu_hours"] = "gpu_hours"
    gpu_hours: float
    peak_flops_per_s: float | None = None
    """Dense peak rate of one GPU in the precision of the run."""
    utilisation: float | None = None
    """Model FLOPs (M of the house's convention) over peak FLOPs that the run is to reach."""

    def __post_init__(self) -> None:
        require_positive(gpu_hours=self.gpu_hours)
        if self.peak_flops_per_s is not None:
            require_positive(peak_flops_per_s=self.peak_flops_per_s)
        require(
            self.utilisation is None or 0 < self.utilisation <= 1,
            f"utilisation must be above 0 and at most 1, got {self.utilisation}",
        )

    @property
    def train_flops(self) -> float:
        """What those hours compute."""
        assert self.peak_flops_per_s is not None, "settled before"
        assert self.utilisation is not None, "settled before"
        return self.gpu_hours * 3600 * self.peak_flops_per_s * self.utilisation


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """So many tokens, and the model they are compute-optimal for."""

    kind: Literal["tokens"] = "tokens"
    tokens: int

    def __post_init__(self) -> None:
        require_positive(tokens=self.tokens)


@dataclass(frozen=True, kw_only=True)
class ParamBudget:
    """So many parameters in total, and the tokens that are compute-optimal for that model."""

    kind: Literal["params"] = "params"
    total_params: int

    def __post_init__(self) -> None:
        require_positive(total_params=self.total_params)


@dataclass(frozen=True, kw_only=True)
class LingTarget:
    """The compute of a published Ling 2.0 model; its configuration is shown beside ours."""

    kind: Literal["ling"] = "ling"
    name: str
    model: ModelConfig
    """The published shape."""
    tokens: int
    """What it was trained on before its context was extended."""
    sequence_length: int
    """Context of that training; enters M through the attention term."""
    peak_lr: float
    batch_tokens: int
    recipe: Recipe | None = None
    """Shapes and training laws at that size; None keeps the sweep's own, made for its rungs."""

    def __post_init__(self) -> None:
        require_positive(
            tokens=self.tokens,
            sequence_length=self.sequence_length,
            peak_lr=self.peak_lr,
            batch_tokens=self.batch_tokens,
        )

    @property
    def train_flops(self) -> float:
        """C of the published training, by the house's convention."""
        return flops_per_token(self.model, self.sequence_length).house * self.tokens


@dataclass(frozen=True, kw_only=True)
class OnGivenWeights:
    """A second stage that may begin with weights trained elsewhere, by an engine that the
    promotion was handed over to, and not with a state of the run launched here."""

    weights: Path | None = None
    """A published checkpoint or a folder of weights of the promotion's model; None: what the run
    launched here has kept."""
    at_step: int | None = None
    """Steps of the promotion that the weights have behind them."""

    def __post_init__(self) -> None:
        require(
            (self.weights is None) == (self.at_step is None),
            f"weights={self.weights} and at_step={self.at_step}: give both, or neither",
        )
        if self.at_step is not None:
            require_positive(at_step=self.at_step)


@dataclass(frozen=True, kw_only=True)
class Continue(OnGivenWeights):
    """A launched run, trained on for longer at its constant rate before that falls."""

    kind: Literal["continue"] = "continue"
    launched: str
    """A promotion that was launched: its id, or latest."""
    tokens: int
    """Of the whole run, those that are done included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(tokens=self.tokens)


@dataclass(frozen=True, kw_only=True)
class Decay(OnGivenWeights):
    """A launched run, ended early: its rate falls from where it stands."""

    kind: Literal["decay"] = "decay"
    launched: str
    tokens: int | None = None
    """Of the whole run; None: so many that the fall takes its schedule's share of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens is not None:
            require_positive(tokens=self.tokens)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The average of a launched run's last weights, in place of a fall of its rate."""

    kind: Literal["merge"] = "merge"
    launched: str
    num_merged: int
    """Evenly spaced ones; a launch keeps them with ``keep_weights``."""

    def __post_init__(self) -> None:
        require(self.num_merged >= 2, f"num_merged must be >= 2, got {self.num_merged}")


@dataclass(frozen=True, kw_only=True)
class ExtendContext(OnGivenWeights):
    """A launched run, trained on with longer sequences from where it stands."""

    kind: Literal["extend"] = "extend"
    launched: str
    tokens: int
    """Of the whole run, those that are done included."""
    sequence_length: int
    rope_base: float | None = None
    yarn_factor: float | None = None
    balance_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(tokens=self.tokens, sequence_length=self.sequence_length)


SecondStage = Continue | Decay | Merge | ExtendContext
FirstStage = NextRung | ComputeBudget | GpuHours | TokenBudget | ParamBudget | LingTarget
Target = FirstStage | SecondStage


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a target fixes. Exactly one is given; the surface gives the others."""

    train_flops: float | None = None
    flops_per_token: float | None = None
    tokens: int | None = None
    least_size: float = 0.0
    """FLOPs per token that the choice may not fall below, with ``train_flops``."""


def target_name(target: Target) -> str:
    """A short name for ids and tables: ``next_rung-6x``, ``compute-1e+18``, ``ling_mini``."""
    if isinstance(target, NextRung):
        return f"next_rung-{target.factor:g}x"
    if isinstance(target, ComputeBudget):
        return f"compute-{target.train_flops:.3g}"
    if isinstance(target, GpuHours):
        return f"gpu_hours-{target.gpu_hours:.3g}"
    if isinstance(target, TokenBudget):
        return f"tokens-{target.tokens:.3g}"
    if isinstance(target, ParamBudget):
        return f"params-{target.total_params:.3g}"
    if isinstance(target, Continue | ExtendContext):
        return f"{target.kind}-{target.tokens:.3g}"
    if isinstance(target, Decay | Merge):
        return target.kind
    return target.name


def require_beyond(train_flops: float, largest_flops: float) -> None:
    """Refuse a target that lies within the sweep: it is a measurement, not a promotion."""
    if train_flops <= largest_flops:
        raise ConfigError(
            f"target: {train_flops:.3g} training FLOPs are no more than the sweep's largest run "
            f"took ({largest_flops:.3g}); that is measured already. Choose a larger target, or "
            "`windtunnel fit` to read the law inside the sweep"
        )
