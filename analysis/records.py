"""What one run measured: the schema the sweeps write and the fits read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from analysis.results import Exclusion

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class DomainLoss:
    """Held-out loss of one domain."""

    loss_nats: float
    """Mean cross-entropy per token, in nats."""
    bits_per_byte: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class LayerLoad:
    """Load of one layer's routed experts over the whole held-out split."""

    layer: int
    max_vio: float
    """(max load - mean load) / mean load."""
    min_vio: float
    """(mean load - min load) / mean load; 1 means a dead expert."""
    normalized_entropy: float
    """exp(H(load)) / experts, between 1/experts and 1."""
    dead_frac: float
    """Share of experts that no held-out token chose."""
    load: tuple[float, ...] = ()
    """Share of the routed choices each expert received; sums to 1."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as ``record.json`` keeps it. Units are in the names."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    status: Literal["done", "diverged"]
    reason: str = ""
    """Why a run diverged, and at which step; empty for a done one."""
    role: Literal["grid", "noise", "promoted"] = "grid"
    rung: str
    """Name of the model size within its ladder."""
    seed: int
    protocol: dict[str, Any]
    """What is held equal in every run of a sweep."""
    protocol_fingerprint: str

    total_params: int
    active_params: int
    """Parameters one token uses, embedding and output layer included."""
    active_non_embedding_params: int
    """The same without the embedding and the output layer."""
    convention: str
    """Version of the counting convention, e.g. ``ling-1``."""
    flops_per_token: float
    """M: non-embedding training FLOPs per token, by the house convention."""
    train_flops: float
    """C = flops_per_token · tokens."""
    other_flops_per_token: dict[str, float]
    """The same quantity by other conventions, by name."""
    tokens: int
    batch_tokens: int
    steps: int
    sequence_length: int
    peak_lr: float
    num_layers: int
    hidden_size: int
    num_experts: int
    experts_per_token: int
    num_shared_experts: int
    expert_width: int
    activation_ratio: float
    granularity: float

    loss_nats: float
    """Held-out loss over all domains by the mixture's weights, nats per token."""
    bits_per_byte: float
    train_loss_nats: float
    """Mean training loss of the last tenth of the steps."""
    by_domain: dict[str, DomainLoss]
    load_by_layer: tuple[LayerLoad, ...]
    wall_s: float
    tokens_per_s: float
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """Records fit to be analysed, and those that are not, with their reasons."""

    records: tuple[RunRecord, ...]
    excluded: tuple[Exclusion, ...]


def load_records(dirs: Iterable[Path]) -> RecordSet:
    """The records of run directories (each holding ``record.json``)."""
    raise NotImplementedError
