"""How one run is spread over processes. Torch-free; none of it is scientific."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig, MoEConfig, require, require_positive
from model.own.parts import refuse_own
from model.training.config import TrainConfig

Schedule = Literal["1f1b", "zero_bubble"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sizes of the parallel dimensions; their product (without ``expert``) is the process count.

    Experts and sequences live on the ranks among which everything else is sharded: of ``shard``
    ranks every ``expert`` neighbours hold one copy of all experts between them, and every
    ``context`` neighbours read one sequence.
    """

    replicate: int = 1
    """Copies of the sharded model, each on its own data (HSDP's outer size)."""
    shard: int = 1
    """Ranks that share one copy of the weights (FSDP2)."""
    expert: int = 1
    """Ranks over which the routed experts are spread; divides ``shard``."""
    context: int = 1
    """Ranks over which each sequence is spread; divides ``shard``."""
    pipeline: int = 1
    """Ranks over which the layers are spread."""
    virtual: int = 1
    """Pipeline stages on one rank (interleaved 1F1B)."""
    micro_batch: int = 1
    """Sequences in one forward pass of one rank."""
    schedule: Schedule = "1f1b"
    """Order of a pipeline's passes: interleaved 1F1B (arXiv:2104.04473), or with the weights'
    gradients put off to where a rank would wait (arXiv:2401.10241)."""
    recompute: bool = False
    """Keep only each block's input for the backward pass."""
    layers: tuple[int, ...] | None = None
    """Blocks in each of the ``pipeline · virtual`` stages, in order; null: as even as can be.
    A stage may be empty, and the prediction block is always in the last."""

    def __post_init__(self) -> None:
        require_positive(
            replicate=self.replicate,
            shard=self.shard,
            expert=self.expert,
            context=self.context,
            pipeline=self.pipeline,
            virtual=self.virtual,
            micro_batch=self.micro_batch,
        )
        for name, size in (("expert", self.expert), ("context", self.context)):
            require(self.shard % size == 0, f"{name} ({size}) must divide shard ({self.shard})")
        require(
            self.schedule == "1f1b" or not self.recompute,
            "schedule zero_bubble goes back through a block for each of its gradients, and would "
            "compute it again each time; use recompute=false or schedule=1f1b",
        )
        require(
            self.pipeline > 1 or self.virtual == 1,
            f"virtual ({self.virtual}) needs a pipeline of more than 1 rank",
        )
        require(
            self.layers is None or len(self.layers) == self.num_stages,
            f"layers must name {self.num_stages} stages (pipeline · virtual), got {self.layers}",
        )

    @property
    def data(self) -> int:
        """Ranks, or groups of ``context`` ranks, that read different text."""
        return self.stage_ranks // self.context

    @property
    def stage_ranks(self) -> int:
        """Ranks that compute one pipeline stage."""
        return self.replicate * self.shard

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.pipeline * self.stage_ranks

    @property
    def num_stages(self) -> int:
        """Pieces the layers are cut into."""
        return self.pipeline * self.virtual

    def stage_layers(self, num_layers: int) -> tuple[range, ...]:
        """The blocks of each stage, in the order of the stages."""
        counts = self.layers or tuple(
            (stage + 1) * num_layers // self.num_stages - stage * num_layers // self.num_stages
            for stage in range(self.num_stages)
        )
        require(
            sum(counts) == num_layers and min(counts) >= 0,
            f"layers {list(counts)} must sum to num_layers ({num_layers})",
        )
        ends = [sum(counts[: stage + 1]) for stage in range(self.num_stages)]
        return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))

    def micro_batches(self, train: TrainConfig) -> int:
        """Forward passes of each rank in one optimizer step."""
        return self.micro_batches_of(train.batch_tokens // train.sequence_length)

    def micro_batches_of(self, windows: int) -> int:
        """Forward passes of each rank over a batch of so many sequences.

        Raises:
            ConfigError: they do not divide.
        """
        at_once = self.data * self.micro_batch
        require(
            windows % at_once == 0,
            f"a batch of {windows} sequences does not divide into data ({self.data}) times "
            f"micro_batch ({self.micro_batch})",
        )
        return windows // at_once

    def require_pieces(self, sequence_length: int) -> None:
        """Refuse sequences that do not divide among the ranks that share one.

        Raises:
            ConfigError: with both numbers.
        """
        pieces = 2 * self.context if self.context > 1 else 1
        require(
            sequence_length % pieces == 0,
            f"sequences of {sequence_length} tokens do not divide into the {pieces} pieces of "
            f"context ({self.context})",
        )

    def whole_rounds(self, passes: int) -> int:
        """At least so many forward passes, and a number the pipeline's schedule can deal out."""
        return next(n for n in itertools.count(passes) if n % max(1, n // self.pipeline) == 0)

    def check(self, model: ModelConfig, train: TrainConfig) -> None:
        """Refuse sizes that do not fit the model or the batch.

        Raises:
            ConfigError: naming the size and what it must divide.
        """
        refuse_own(model.own, "training over several processes")
        self._require_work(self.stage_layers(model.num_layers))
        require(
            train.optimizer.kind != "adamw8bit",
            f"optimizer.kind {train.optimizer.kind} is for one process: blocks of its moments "
            "would not end where shards do; use adamw",
        )
        require(
            train.precision != "fp8" or self.world_size == 1,
            f"precision fp8 is trained in one process, this plan has {self.world_size}; use bf16",
        )
        self.check_batch(train, train.sequence_length)
        if model.moe is not None:
            experts, sharded = model.moe.num_experts, self.shard // self.expert
            require(
                experts % self.expert == 0,
                f"expert ({self.expert}) must divide num_experts ({experts})",
            )
            require(
                self.expert_shard_dim(model.moe) == 1 or experts // self.expert >= sharded,
                f"shard / expert ({sharded}) must divide expert_width ({model.moe.expert_width}) "
                f"or be at most the {experts // self.expert} experts of a rank",
            )

    def check_batch(self, train: TrainConfig, sequence_length: int) -> None:
        """Refuse sizes that do not fit a batch of sequences that long, as a stage may have them.

        Raises:
            ConfigError: naming the size and what it must divide.
        """
        self.require_pieces(sequence_length)
        count = self.micro_batches_of(train.batch_tokens // sequence_length)
        require(
            count == self.whole_rounds(count),
            f"{count} micro-batches do not divide into {count // self.pipeline} rounds of the "
            f"pipeline's {self.pipeline} ranks (interleaved 1F1B), with sequences of "
            f"{sequence_length} tokens",
        )
        require(
            train.balance.aux_loss_weight == 0 or count == 1,
            "balance.aux_loss_weight is over the whole batch: it needs one micro-batch, "
            f"this plan has {count} with sequences of {sequence_length} tokens",
        )

    def _require_work(self, stages: Sequence[range]) -> None:
        """The first rank has the embedding, the last the output; any other needs a block."""
        for rank in range(1, self.pipeline - 1):
            require(
                any(stages[rank :: self.pipeline]),
                f"pipeline rank {rank} would have no block: {len(stages)} stages of "
                f"{[len(layers) for layers in stages]} blocks over pipeline ({self.pipeline}) "
                "ranks; use fewer ranks, or name other layers",
            )

    def expert_shard_dim(self, moe: MoEConfig) -> int:
        """Which dimension of an expert weight [experts, width, model width] is sharded.

        The width of an expert, where it divides evenly, as FSDP2 asks of any dimension but the
        first; else the experts of a rank, unevenly (Ling-1T on 2,016 GPUs: 32 experts over 12).
        """
        return 1 if moe.expert_width % (self.shard // self.expert) == 0 else 0
