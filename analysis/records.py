"""What one run measured: the schema the sweeps write and the fits read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.exclusion import Exclusion
from model.errors import ConfigError
from model.garbage import collector_at_rest
from model.typed import build

if TYPE_CHECKING:  # pandas takes a third of a second to import, and few need the frame
    from pandas import DataFrame

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
    """Use of one layer's routed experts over the whole held-out split.

    The fields after ``load`` are None in records written before they were measured.
    """

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
    batch_max_vio: float | None = None
    """``max_vio`` of single passes over up to 4096 tokens of one domain, their mean."""
    batch_min_vio: float | None = None
    """Its minimum twin."""
    gate_entropy: float | None = None
    """Mean over tokens of exp(entropy of the K gates)/K: 1 if they are equal, 1/K if one is all."""
    top_k_mass: float | None = None
    """Mean share of all E scores that the chosen K have: K/E for a flat router, 1 for a sharp one.
    """
    specialisation: float | None = None
    """Mutual information of expert and domain over the domain's entropy, 0 to 1; 0 for one domain.
    """
    coactivation: float | None = None
    """Share of an expert's tokens that its most frequent partner gets too, mean over experts."""
    saturation: float | None = None
    """Share of a token's experts that it had at the run's last evaluation on the way; None without
    one."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as ``record.json`` keeps it. Units are in the names."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    status: Literal["done", "diverged"]
    reason: str = ""
    """Why a run diverged, and at which step; empty for a done one."""
    role: Literal["grid", "noise", "promoted", "trunk"] = "grid"
    """A trunk is the constant-rate run that others are readouts of; no law is fitted to it."""
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

    loss_nats: float | None
    """Held-out loss over all domains by the mixture's weights, nats per token; None for a diverged
    run whose weights give no number."""
    bits_per_byte: float | None
    """The same in bits per byte of text."""
    train_loss_nats: float
    """Mean training loss of the last tenth of the steps."""
    by_domain: dict[str, DomainLoss]
    load_by_layer: tuple[LayerLoad, ...]
    wall_s: float
    tokens_per_s: float
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def attention_params(self) -> float:
        """Attention's training FLOPs per token over 6: the parameters that would cost as much."""
        return self.flops_per_token / 6 - self.active_non_embedding_params

    @property
    def active_params_with_attention(self) -> float:
        """``active_params``, with the FLOPs of attention counted too."""
        return self.active_params + self.attention_params

    @property
    def total_params_with_attention(self) -> float:
        """``total_params``, with the FLOPs of attention counted too."""
        return self.total_params + self.attention_params

    @property
    def fp8_fallen(self) -> tuple[str, ...]:
        """Layers of an FP8 run that a safeguard sent back to bfloat16; none elsewhere."""
        return tuple(self.provenance.get("fp8_fallen", ()))

    @property
    def heldout_nats(self) -> float:
        """``loss_nats`` of a run that has one, as every done run does.

        Raises:
            ValueError: a diverged run without; leave it out by its ``status`` first.
        """
        if self.loss_nats is None:
            raise ValueError(f"run {self.run_id} has no held-out loss: {self.reason}")
        return self.loss_nats


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """Records fit to be analysed, and those that are not, with their reasons."""

    records: tuple[RunRecord, ...]
    excluded: tuple[Exclusion, ...]


@collector_at_rest()
def load_records(dirs: Iterable[Path]) -> RecordSet:
    """The records of run directories (each holding ``record.json``), in their order.

    A run without a record, a diverged one and one with an unmeasured loss are excluded, each with
    its reason.

    Raises:
        ConfigError: a record that can't be read as this schema, or two of the same run.
    """
    records: dict[str, RunRecord] = {}
    excluded = []
    for folder in dirs:
        path = folder / "record.json"
        if not path.exists():
            excluded.append(Exclusion(label=folder.name, reason="no record: not finished"))
            continue
        record = read_record(path)
        if isinstance(record, Exclusion):
            excluded.append(record)
        elif record.run_id in records:
            raise ConfigError(f"{path}: run {record.run_id} is given twice; name each run once")
        else:
            records[record.run_id] = record
    return RecordSet(records=tuple(records.values()), excluded=tuple(excluded))


def read_record(path: Path) -> RunRecord | Exclusion:
    """One ``record.json``, or why it can't be analysed.

    Raises:
        ConfigError: not JSON, another schema version, or a field that is wrong.
    """
    mapping = record_mapping(path)
    if mapping.get("status") == "diverged":
        label = str(mapping.get("run_id", path.parent.name))
        return Exclusion(label=label, reason=f"diverged: {mapping.get('reason') or 'no reason'}")
    record = build(RunRecord, mapping, where=str(path))
    for name in ("loss_nats", "flops_per_token", "train_flops", "tokens", "total_params"):
        if not (getattr(record, name) or 0) > 0:
            raise ConfigError(f"{path}: {name} must be positive, got {getattr(record, name)}")
    return record


def record_mapping(path: Path) -> dict[str, Any]:
    """The content of a ``record.json`` of this schema.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: not JSON, or another schema version.
    """
    try:
        mapping = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error}); {anew(path.parent.name)}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected a mapping; {anew(path.parent.name)}")
    version = mapping.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: record schema {version!r}, this program reads {SCHEMA_VERSION}; use the "
            "version of Wind Tunnel that wrote it"
        )
    return mapping


def anew(run_id: str) -> str:
    """What to do about a record that can't be used."""
    return f"the sweep's own command with redo=[{run_id}] sets the run aside and measures it anew"


def to_frame(records: Iterable[RunRecord]) -> DataFrame:
    """One row a run: every scalar field, each domain's loss, and the load averaged over layers."""
    from pandas import DataFrame

    rows = []
    for record in records:
        row = {
            f.name: getattr(record, f.name)
            for f in fields(record)
            if isinstance(getattr(record, f.name), (str, int, float))
        }
        for domain, measured in record.by_domain.items():
            row[f"loss_nats.{domain}"] = measured.loss_nats
            row[f"bits_per_byte.{domain}"] = measured.bits_per_byte
        if record.load_by_layer:
            for name in ("max_vio", "min_vio", "normalized_entropy", "dead_frac"):
                layers = [getattr(load, name) for load in record.load_by_layer]
                row[f"mean_{name}"] = sum(layers) / len(layers)
        rows.append(row)
    return DataFrame(rows)
