"""The machine plan: how a run is spread over a machine, and what that takes.

Of all sizes that fit the fastest is taken; those that cannot be it by a closed-form bound on time
or memory are not played through. What the numbers rest on is listed with them: peaks are data
sheets', shares of them are assumptions or, where `conf/hardware` says so, measured on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

from model.accounting import flops_per_token
from model.config import ModelConfig
from model.errors import ConfigError
from model.own.parts import refuse_own
from model.training.config import TrainConfig
from model.training.distributed.config import ParallelConfig, Schedule
from windtunnel.machine.costs import (
    BACKWARD,
    PRODUCT_BYTES,
    attention_core_s,
    block_costs,
    gather_s,
    ring_s,
    split_costs,
)
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.memory_plan import RankMemory, mean_weights, rank_memory, rank_params
from windtunnel.machine.pipeline import Flow, balanced, most_held, play, stage_seconds, uniform
from windtunnel.machine.update_costs import ASSUMPTION, orthogonalising_s

ASSUMPTIONS = (
    "matrix products reach matmul_efficiency of the peak, routed experts grouped_efficiency, the "
    "output layer output_efficiency",
    "nothing hides all-to-alls or the gathering of keys and values; computation hides the sending "
    "of activations between stages",
    "weights are gathered and gradients reduced once a step, half hidden behind computation",
    "experts are even in load; no failures, no evaluation, no checkpoints",
)
HIDDEN = 0.5
"""Share of the gathering of weights and the reduction of gradients behind computation."""
MICRO_BATCHES = (1, 2, 4, 8)
VIRTUAL = (1, 2, 4)
LEAST_SHARE = 4096
"""Positions of a sequence that a rank is left with at least: below that there is too little
attention to gather keys for, and no memory to be saved that a smaller micro-batch would not."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Layers over pipeline stages, and what a step loses by it."""

    layers: tuple[int, ...]
    """Blocks of each stage; the last has the prediction block and the output layer besides."""
    step_s: float
    bubble: float
    imbalance: float


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a step takes with the pipeline's passes in another order."""

    schedule: Schedule
    step_s: float
    bubble: float
    memory_bytes: int
    """Of the fullest rank."""


@dataclass(frozen=True, kw_only=True)
class SharedSequence:
    """What a layer spends on keys and values that lie on several ranks, forward, a micro-batch."""

    gather_s: float
    """All of them gathered before attention, as launched runs do."""
    ring_s: float
    """What a ring, which sends while it attends, would wait."""
    attention_s: float
    """Scores and weighted values themselves."""
    bytes: int
    """Kept on a rank for the backward pass."""


@dataclass(frozen=True, kw_only=True)
class MachinePlan:
    """One run on one machine."""

    hardware: Hardware
    gpus: int
    parallel: ParallelConfig
    micro_batches: int
    """Of each rank in one optimizer step."""
    split: Split
    uniform: Split
    """The same with equal numbers of blocks, for comparison."""
    other_order: Order | None
    """The other schedule at these sizes and this split; None without a pipeline, or where blocks
    are computed again, which zero-bubble would have to do for every gradient."""
    shared: SharedSequence | None
    """None where each rank reads whole sequences."""
    memory: tuple[RankMemory, ...]
    """By place in the pipeline."""
    step_s: float
    days: float
    gpu_hours: float
    tokens_per_s: float
    utilisation: float
    """Model FLOPs (all matrix products, attention by the causal half) over the machine's peak."""
    layer_costs: dict[str, float]
    """Forward time of each kind of block over that of a mixture layer."""
    assumptions: tuple[str, ...] = ASSUMPTIONS

    @property
    def memory_bytes(self) -> int:
        """Of the fullest rank."""
        return max(rank.total for rank in self.memory)

    def of_steps(self, steps: int) -> MachinePlan:
        """The same step, taken so many times: days and GPU-hours of a part of the run."""
        seconds = self.step_s * steps
        return replace(self, days=seconds / 86_400, gpu_hours=seconds * self.gpus / 3600)

    @property
    def fits(self) -> bool:
        """Whether that is no more than the usable memory."""
        return self.memory_bytes <= self.hardware.usable_bytes


def best_plan(model: ModelConfig, train: TrainConfig, hardware: Hardware, gpus: int) -> MachinePlan:
    """The fastest plan that fits the memory.

    Raises:
        ConfigError: none fits; it says how much the smallest needs.
    """
    refuse_own(model.own, "the machine plan")
    room = hardware.usable_bytes
    least_bytes: float = math.inf
    fitting: MachinePlan | None = None
    splits: dict[tuple[int, int, int, int], tuple[int, ...]] = {}
    candidates = [
        (_least_s(model, train, hardware, parallel), parallel)
        for parallel in _candidates(model, train, hardware, gpus)
    ]
    for least_s, parallel in sorted(candidates, key=lambda candidate: candidate[0]):
        if fitting is not None and least_s >= fitting.step_s:
            break
        needed = mean_weights(model, parallel)
        if needed <= room:
            # Micro-batch and recomputation make every block's time longer by one factor.
            alike = (parallel.pipeline, parallel.virtual, parallel.expert, parallel.context)
            if alike not in splits:
                costs = block_costs(model, hardware, parallel, train.sequence_length)
                splits[alike] = balanced(costs, parallel)
            sizes = replace(parallel, layers=splits[alike])
            if fitting is not None and _first_to_last_s(model, train, hardware, sizes) >= (
                fitting.step_s
            ):
                continue
            needed = max(rank.total for rank in _memory(model, train, sizes, splits[alike]))
            if needed <= room:
                found = plan_for(model, train, hardware, sizes)
                if fitting is None or found.step_s < fitting.step_s:
                    fitting = found
        least_bytes = min(least_bytes, needed)
    if not candidates:
        windows = train.batch_tokens // train.sequence_length
        raise ConfigError(
            f"gpus: no parallel sizes of {gpus} divide a batch of {windows} sequences; choose "
            "other gpus, or another batch_tokens"
        )
    if fitting is None:
        raise ConfigError(
            f"{gpus} {hardware.name} are too few: {least_bytes / 1e9:,.1f} GB a GPU at least, "
            f"{hardware.usable_bytes / 1e9:.3g} are usable; choose more gpus"
        )
    return fitting


def plan_for(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, parallel: ParallelConfig
) -> MachinePlan:
    """What these sizes take; without ``parallel.layers`` the balanced split is chosen."""
    costs = block_costs(model, hardware, parallel, train.sequence_length)
    num_micro = parallel.micro_batches(train)
    counts = parallel.layers or balanced(costs, parallel)
    even = uniform(model.num_layers, parallel.num_stages)
    beside_s = _beside_s(model, train, hardware, parallel, counts)

    def split(layers: tuple[int, ...]) -> Split:
        flow = _flow(model, train, hardware, replace(parallel, layers=layers))
        return Split(
            layers=layers,
            step_s=flow.seconds + beside_s,
            bubble=flow.bubble,
            imbalance=flow.imbalance,
        )

    chosen = split(counts)
    step_s = chosen.step_s
    total_s = step_s * train.num_steps
    gpus = parallel.world_size
    flops = flops_per_token(model, train.sequence_length)
    causal = flops.others["all_matmuls"] - (flops.house - flops.others["causal_attention"])
    mixture = costs.layers[-1]
    return MachinePlan(
        hardware=hardware,
        gpus=gpus,
        parallel=replace(parallel, layers=counts),
        micro_batches=num_micro,
        split=chosen,
        uniform=chosen if counts == even else split(even),
        other_order=_other_order(model, train, hardware, replace(parallel, layers=counts)),
        shared=_shared_sequence(model, train, hardware, parallel),
        memory=_memory(model, train, parallel, counts),
        step_s=step_s,
        days=total_s / 86_400,
        gpu_hours=total_s * gpus / 3600,
        tokens_per_s=train.batch_tokens / step_s,
        utilisation=causal * train.batch_tokens / (step_s * gpus * hardware.peak_flops_per_s),
        assumptions=ASSUMPTIONS if train.optimizer.muon is None else (*ASSUMPTIONS, ASSUMPTION),
        layer_costs={
            "dense": costs.layers[0] / mixture,
            "mixture": 1.0,
            "prediction block": costs.mtp / mixture,
            "output layer": costs.output / mixture,
        },
    )


def _flow(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, parallel: ParallelConfig
) -> Flow:
    """A step through a pipeline whose split is known."""
    assert parallel.layers is not None, "with a split"
    layers, length = parallel.layers, train.sequence_length
    forward = stage_seconds(block_costs(model, hardware, parallel, length), layers)
    halves: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    if parallel.schedule == "zero_bubble":
        inputs, weights = split_costs(model, hardware, parallel, length)
        # PyTorch gives the first stage, whose inputs need no gradients, one backward pass of all.
        halves = (
            (0.0, *stage_seconds(inputs, layers)[1:]),
            (BACKWARD * forward[0], *stage_seconds(weights, layers)[1:]),
        )
    backward = BACKWARD + (1.0 if parallel.recompute else 0.0)
    return play(forward, parallel, parallel.micro_batches(train), backward, halves)


def _other_order(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, parallel: ParallelConfig
) -> Order | None:
    if parallel.pipeline == 1 or parallel.recompute:
        return None
    assert parallel.layers is not None, "with a split"
    is_split = parallel.schedule == "zero_bubble"
    other = replace(parallel, schedule="1f1b" if is_split else "zero_bubble")
    flow = _flow(model, train, hardware, other)
    return Order(
        schedule=other.schedule,
        step_s=flow.seconds + _beside_s(model, train, hardware, other, parallel.layers),
        bubble=flow.bubble,
        memory_bytes=max(rank.total for rank in _memory(model, train, other, parallel.layers)),
    )


def _shared_sequence(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, parallel: ParallelConfig
) -> SharedSequence | None:
    if parallel.context == 1:
        return None
    length = train.sequence_length
    tokens = parallel.micro_batch * length / parallel.context
    heads = 2 * model.attention.num_kv_heads * model.attention.head_dim
    return SharedSequence(
        gather_s=tokens * gather_s(model, hardware, parallel),
        ring_s=tokens * ring_s(model, hardware, parallel, length),
        attention_s=tokens * attention_core_s(model, hardware, length),
        bytes=parallel.micro_batch * length * heads * PRODUCT_BYTES,
    )


def _memory(
    model: ModelConfig, train: TrainConfig, parallel: ParallelConfig, counts: tuple[int, ...]
) -> tuple[RankMemory, ...]:
    held = most_held(parallel, parallel.micro_batches(train))
    return tuple(
        rank_memory(
            model,
            parallel,
            counts,
            rank,
            held[rank],
            sequence_length=train.sequence_length,
            is_bf16=train.precision != "fp32",
        )
        for rank in range(parallel.pipeline)
    )


def _least_s(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, parallel: ParallelConfig
) -> float:
    """A step in which no rank ever waits: a bound that spares playing most sizes through."""
    costs = block_costs(model, hardware, parallel, train.sequence_length)
    work = sum(costs.layers) + costs.mtp + costs.output
    passes = 1 + BACKWARD + (1.0 if parallel.recompute else 0.0)
    return work * passes * parallel.micro_batches(train) / parallel.pipeline


def _first_to_last_s(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, parallel: ParallelConfig
) -> float:
    """A bound with the split known: a rank's work, what comes before its first and after its last.

    The first micro-batch passes the stages before it, its gradient those stages again.
    """
    assert parallel.layers is not None, "with a split"
    costs = block_costs(model, hardware, parallel, train.sequence_length)
    passes = 1 + BACKWARD + (1.0 if parallel.recompute else 0.0)
    seconds = stage_seconds(costs, parallel.layers)
    count = parallel.micro_batches(train)
    ranks = range(parallel.pipeline)
    work = (sum(seconds[rank :: parallel.pipeline]) * count for rank in ranks)
    beside_s = _beside_s(model, train, hardware, parallel, parallel.layers)
    # Of zero-bubble's last gradient no more than the first stages' forward pass is sure to wait.
    around = 1 if parallel.schedule == "zero_bubble" else passes
    return beside_s + max(
        passes * mine + around * sum(seconds[:rank]) for rank, mine in zip(ranks, work, strict=True)
    )


def _beside_s(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    parallel: ParallelConfig,
    counts: tuple[int, ...],
) -> float:
    """Seconds a step spends outside the pipeline on its fullest rank."""
    slowest = 0.0
    for rank in range(parallel.pipeline):
        params = rank_params(model, parallel, counts, rank)
        experts = parallel.shard // parallel.expert
        bytes_each = PRODUCT_BYTES + 4  # a gathered weight, a reduced gradient
        moved = params.routed / parallel.expert * bytes_each * (1 - 1 / experts)
        moved += params.others * bytes_each * (1 - 1 / parallel.shard)
        seconds = (1 - HIDDEN) * moved / hardware.link_bytes_per_s(parallel.shard)
        mine = (params.routed + params.others) / parallel.shard
        # AdamW reads weight, gradient and moments, and writes all but the gradient.
        seconds += mine * 7 * 4 / hardware.memory_bytes_per_s
        if train.optimizer.muon is not None:
            seconds += orthogonalising_s(
                model, train.optimizer.muon, hardware, parallel, counts, rank
            )
        slowest = max(slowest, seconds)
    return slowest


def _candidates(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, gpus: int
) -> Iterator[ParallelConfig]:
    windows = train.batch_tokens // train.sequence_length
    num_experts = model.moe.num_experts if model.moe else 1
    for pipeline, context in product(_divisors(gpus), _contexts(train.sequence_length)):
        shard = gpus // pipeline
        if pipeline > model.num_layers + 1 or shard % context or windows % (shard // context):
            continue
        # Within a node: the all-to-all of a mixture layer is what a network bears least.
        experts = [
            e
            for e in _divisors(min(hardware.gpus_per_node, num_experts))
            if shard % e == 0 and num_experts % e == 0
        ]
        for virtual, micro_batch in product(VIRTUAL if pipeline > 1 else (1,), MICRO_BATCHES):
            count, rest = divmod(windows, shard // context * micro_batch)
            if pipeline * virtual > model.num_layers + 2 or rest:
                continue
            if count % max(1, count // pipeline) or count < pipeline:
                continue
            for expert, (schedule, recompute) in product(experts[-2:], _orders(pipeline)):
                sizes = ParallelConfig(
                    shard=shard,
                    expert=expert,
                    context=context,
                    pipeline=pipeline,
                    virtual=virtual,
                    micro_batch=micro_batch,
                    schedule=schedule,
                    recompute=recompute,
                )
                with suppress(ConfigError):  # a size that does not divide
                    sizes.check(model, train)
                    yield sizes


def _contexts(sequence_length: int) -> list[int]:
    """Powers of two that leave each rank enough of a sequence."""
    most = max(1, sequence_length // LEAST_SHARE)
    return [1 << power for power in range(most.bit_length())]


def _orders(pipeline: int) -> tuple[tuple[Schedule, bool], ...]:
    """Schedule, and whether blocks are computed again."""
    kept: tuple[tuple[Schedule, bool], ...] = (("1f1b", False), ("1f1b", True))
    return kept if pipeline == 1 else (*kept, ("zero_bubble", False))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
