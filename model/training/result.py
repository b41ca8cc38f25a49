"""What one run measured, as the trainer hands it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.training.evaluation import DomainLoss, LayerLoad


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What one run measured; its losses are None where a diverged run's weights give no number."""

    status: Literal["done", "diverged"]
    reason: str
    """Why a run diverged, and at which step; empty for a done one."""
    steps: int
    tokens: int
    loss_nats: float | None
    bits_per_byte: float | None
    train_loss_nats: float
    """Mean over the last tenth of the steps."""
    by_domain: Mapping[str, DomainLoss]
    load_by_layer: tuple[LayerLoad, ...]
    wall_s: float
    """Of all attempts, without steps that were lost and done again, and without the compiling of
    kernels that a machine's first run waits for."""
    tokens_per_s: float
    """Of the training steps; evaluation and checkpoints left out."""
    seconds: Mapping[str, float]
    """``wall_s`` by activity: setup, data, step, log, evaluate, checkpoint."""
    epochs: Mapping[str, float]
    """How often each domain's training text was gone through."""
    numerics: Mapping[str, Any]
    """What decides the bits besides the spec: torch, device, threads."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """Of a run with stages, each that is over: ``name``, ``steps`` at its end, ``sequence_length``,
    ``loss_nats`` and, by position in the sequence, ``by_position``."""
    rewinds: tuple[Mapping[str, Any], ...] = ()
    """Each time the run went back: ``step``, ``from_step``, ``reason``."""
    fp8_fallen: tuple[str, ...] = ()
    """Layers that went back from FP8 to bfloat16."""
    computed_by: tuple[Mapping[str, Any], ...] = ()
    """``from_step`` and ``numerics``: several where the run was resumed under others."""
