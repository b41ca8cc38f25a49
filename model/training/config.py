"""How one run is trained: frozen values, no torch.

Everything here is scientific (it changes the numbers) unless its docstring says otherwise; the run
id and the protocol fingerprint are made from the scientific fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.config import require, require_positive

Precision = Literal["fp32", "bf16", "fp8", "bf16_weights"]
"""In which formats a run computes; :func:`model.training.precision.computing_in` says how."""


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """How the hidden matrices are updated (:mod:`model.training.muon`)."""

    momentum: float = 0.95
    """Share of the momentum that a step keeps; the update looks one step ahead (Nesterov)."""
    per_head: bool = False
    """Each attention head's queries, keys and values are matrices of their own."""

    def __post_init__(self) -> None:
        require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW as Ling 2.0 uses it (report, section 3.2.1: betas 0.9/0.95, decay 0.1, clip 1.0)."""

    kind: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """``adamw8bit`` keeps its moments in one byte each (:mod:`model.training.moments`); ``muon`` is
    for the hidden matrices, with AdamW for embedding, output layer and vectors."""
    muon: MuonConfig | None = None
    """With ``muon`` and only then."""
    peak_lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    """Largest global gradient norm; larger ones are scaled down to it."""

    def __post_init__(self) -> None:
        require_positive(peak_lr=self.peak_lr, eps=self.eps, clip_norm=self.clip_norm)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")
        require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")
        require(
            (self.kind == "muon") == (self.muon is not None),
            f"optimizer.muon is {self.muon}, but optimizer.kind is {self.kind}: it is given with "
            "the kind muon and only then",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over a run, in fractions of its tokens: warm-up, then stable or cosine, decay.

    ``wsd``: linear warm-up, constant, then decay over the last ``decay_frac``;
    ``wsm``: warm-up and constant to the end, where the checkpoints of the last ``decay_frac`` are
    averaged with the weights that stand for that decay (arXiv:2507.17634);
    ``cosine``: linear warm-up, then a cosine to ``final_frac``; ``constant``: warm-up only.
    """

    kind: Literal["wsd", "wsm", "cosine", "constant"] = "wsd"
    warmup_frac: float = 0.05
    """Of the run's tokens; with ``trunk`` of the ladder's smallest budget."""
    decay_frac: float = 0.2
    """Share of the run spent decaying (wsd), or that the average reaches back over (wsm)."""
    decay_shape: Literal["linear", "1-sqrt", "cosine"] = "1-sqrt"
    """How a wsd decay goes from the peak to final_frac of it (Hägele et al., arXiv:2405.18392), or
    the decay a wsm average stands for; ``linear`` is then the plain mean."""
    final_frac: float = 0.0
    """Last learning rate as a fraction of the peak."""
    num_merged: int = 8
    """Checkpoints averaged, evenly spaced (wsm only)."""
    trunk: bool = False
    """The runs of a rung and seed are readouts of one constant-rate run: they have one learning
    rate, batch and warm-up whatever their budget (wsd and wsm)."""
    warmup_tokens: int | None = None
    """Warm-up that does not depend on the run's length; the plan sets it where a trunk is shared,
    and it then stands in place of warmup_frac."""

    def __post_init__(self) -> None:
        for name in ("warmup_frac", "decay_frac", "final_frac"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be between 0 and 1, got {value}")
        require(
            self.warmup_tokens is not None
            or self.kind not in ("wsd", "wsm")
            or self.warmup_frac + self.decay_frac <= 1,
            f"warmup_frac ({self.warmup_frac}) and decay_frac ({self.decay_frac}) "
            "overlap: their sum must be <= 1",
        )
        require(self.num_merged >= 1, f"num_merged must be >= 1, got {self.num_merged}")
        require(
            not self.trunk or self.kind != "cosine",
            "trunk: a cosine's rate falls from the start, so it has no trunk to share; use wsd or "
            "wsm, or trunk=false",
        )
        require(
            self.warmup_tokens is None or self.warmup_tokens >= 0,
            f"warmup_tokens must be >= 0, got {self.warmup_tokens}",
        )


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How the load of the experts is kept even."""

    rule: Literal["zero_mean_sign", "sign", "none"] = "zero_mean_sign"
    """b += u·(sign e - mean sign e) (Ling 2.0), b += u·sign e (DeepSeek), or a frozen bias."""
    update_rate: float = 1e-3
    """u. 1e-3 in pre-training, 1e-4 after context extension (Ling 2.0 report, section 3.2.1)."""
    aux_loss_weight: float = 0.0
    """Weight of the Switch balance loss over the global batch (a variant; Ling uses none)."""
    z_loss_weight: float = 0.0
    """Weight of the router z-loss (3.5e-6 in Ling's open scripts, not in the report)."""

    def __post_init__(self) -> None:
        for name in ("update_rate", "aux_loss_weight", "z_loss_weight"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must be >= 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """When a run has gone wrong, and what is done about it (see model.training.health)."""

    on_spike: Literal["end", "rewind"] = "end"
    """A loss spike, or a number that is none: end the run as diverged, or go back to before it and
    leave out the text it was met in (as PaLM's training did, arXiv:2204.02311, section 5.1)."""
    max_rewinds: int = 3
    """After so many the run has diverged."""
    spike_nats: float = 1.0
    """Rise of the smoothed loss over its best that counts as a spike."""
    max_dead_frac: float = 0.5
    """Share of a layer's experts that may stay without a single choice."""

    def __post_init__(self) -> None:
        require_positive(spike_nats=self.spike_nats)
        require(self.max_rewinds >= 0, f"max_rewinds must be >= 0, got {self.max_rewinds}")
        require(
            0 < self.max_dead_frac <= 1,
            f"max_dead_frac must be above 0 and at most 1, got {self.max_dead_frac}",
        )


STANDARD_HEALTH = HealthConfig()


LOOK_EVERY = 8
"""One in so many held-out windows is in an evaluation on the way. The routing of single tokens is
looked at in these alone: at every evaluation for the same tokens, and at little cost."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The held-out measurement: the same windows in every run, spread evenly over each domain."""

    heldout_tokens: int = 65_536
    """Tokens evaluated per domain at the end (fewer only where the domain holds fewer)."""
    num_intermediate: int = 4
    """Evaluations on the way, evenly spaced in tokens, on an eighth of the held-out tokens."""

    def __post_init__(self) -> None:
        require_positive(heldout_tokens=self.heldout_tokens)
        require(
            self.num_intermediate >= 0,
            f"num_intermediate must be >= 0, got {self.num_intermediate}",
        )

    @property
    def read_tokens(self) -> float:
        """Tokens of a domain that a run reads in all its evaluations together."""
        return self.heldout_tokens * (1 + self.num_intermediate / LOOK_EVERY)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What a stage of the data (``data.stages``, of that name) changes in the training besides.

    Ling 2.0 (report, section 3.2): from 4K to 32K tokens the base of the rotary embedding goes from
    1e4 to 6e5 and the balance rate from 1e-3 to 1e-4; YaRN with factor 4 leads to 128K.
    """

    name: str
    rope_base: float | None = None
    """Null: as before."""
    yarn_factor: float | None = None
    """Longer context by YaRN, over the longest sequence of the stages before; null: none."""
    lr_factor: float = 1.0
    """On the learning rate of the schedule."""
    balance_rate: float | None = None
    """Null: balance.update_rate."""

    def __post_init__(self) -> None:
        require_positive(lr_factor=self.lr_factor)
        if self.balance_rate is not None:
            require(self.balance_rate >= 0, f"balance_rate must be >= 0, got {self.balance_rate}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved. Not scientific: a resumed run has the same bits as an unbroken one."""

    every_s: float = 20.0
    """Seconds of training between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept."""
    states_at: tuple[int, ...] = ()
    """Steps whose whole state a trunk keeps, for other runs to go on from."""
    weights_at: tuple[int, ...] = ()
    """Steps whose weights a trunk keeps, for other runs to average."""
    ends_at: tuple[int, ...] = ()
    """Steps at which runs end that are averaged from this trunk: it keeps their training loss."""

    def __post_init__(self) -> None:
        require(self.every_s >= 0, f"every_s must be >= 0, got {self.every_s}")
        require(self.keep >= 1, f"keep must be >= 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights trained before, that a run begins with (:mod:`model.training.initial`)."""

    sha256: str
    """Of their names, types, shapes and elements."""
    step: int = 0
    """Steps of this run's schedule and text that they have behind them; all of them: the run only
    measures the weights."""

    def __post_init__(self) -> None:
        require(self.step >= 0, f"step must be >= 0, got {self.step}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run from its initial weights to its last token."""

    tokens: int
    """Training tokens; a whole number of batches."""
    batch_tokens: int
    """Tokens in one optimizer step; a whole number of sequences."""
    sequence_length: int
    seed: int
    """Seeds the initial weights. The token stream does not depend on it."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    balance: BalanceConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    """Not scientific."""
    precision: Precision = "fp32"
    mtp_loss_weight: float = 0.1
    """Weight of the multi-token-prediction loss, where the model has that block (Ling: 0.1)."""
    health: HealthConfig = STANDARD_HEALTH
    stages: tuple[StageConfig, ...] = ()
    """Changes that come with stages of the data; one without an entry changes its text alone."""
    initial_weights: InitialWeights | None = None
    """None: random ones of ``seed``."""

    def __post_init__(self) -> None:
        require_positive(
            tokens=self.tokens,
            batch_tokens=self.batch_tokens,
            sequence_length=self.sequence_length,
        )
        require(
            self.batch_tokens % self.sequence_length == 0,
            f"batch_tokens ({self.batch_tokens}) must be a multiple of "
            f"sequence_length ({self.sequence_length})",
        )
        require(
            self.tokens % self.batch_tokens == 0,
            f"tokens ({self.tokens}) must be a multiple of batch_tokens ({self.batch_tokens})",
        )
        require(
            self.precision != "bf16_weights" or self.optimizer.kind == "adamw8bit",
            "precision bf16_weights: rounding to the nearest would lose most of "
            f"{self.optimizer.kind}'s updates; use the optimizer adamw8bit, or precision bf16",
        )
        require(
            not (self.schedule.trunk and self.health.on_spike == "rewind"),
            "health.on_spike: a trunk can't go back, other runs may have begun from it already; "
            "use on_spike=end or schedule.trunk=false",
        )
        begun = self.initial_weights.step if self.initial_weights is not None else 0
        require(
            begun <= self.num_steps,
            f"initial_weights.step ({begun}) must be at most the run's {self.num_steps} steps",
        )

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the run."""
        return self.tokens // self.batch_tokens


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """Mirror the JSONL to W&B. Not scientific; a W&B that fails never stops a run."""

    kind: Literal["wandb"] = "wandb"
    project: str = "windtunnel"
    entity: str | None = None
    """The team or user it belongs to; None: W&B's own default."""
    mode: Literal["offline", "online"] = "offline"
    group: str | None = None
    """None: the name of the sweep."""
    job_type: str = "train"
    """Within a sweep the role of the run: grid, noise, trunk, promoted."""
    tags: tuple[str, ...] = ()
    """Within a sweep the rung is added."""
    dir: Path | None = None
    """Folder below which ``wandb/`` lies; None: the root."""


@dataclass(frozen=True, kw_only=True)
class TensorboardTracker:
    """Mirror the JSONL to TensorBoard's event files. Not scientific, and never stops a run."""

    kind: Literal["tensorboard"] = "tensorboard"
    group: str | None = None
    """None: the name of the sweep."""
    dir: Path | None = None
    """Folder below which ``tensorboard/`` lies; None: the root."""


@dataclass(frozen=True, kw_only=True)
class JsonlTracker:
    """Only ``metrics.jsonl``, which every run writes anyway."""

    kind: Literal["jsonl"] = "jsonl"


TrackerConfig = JsonlTracker | WandbTracker | TensorboardTracker


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and with what a run computes. Not scientific, but kept in the record."""

    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_dir: Path = Path("tunnel/data")
    """Where prepared corpora are kept."""
    tracker: TrackerConfig = JsonlTracker()

    def __post_init__(self) -> None:
        require_positive(threads=self.threads)
