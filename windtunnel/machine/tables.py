"""A machine plan on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import RenderableType
from rich.text import Text

from analysis.wording import counted
from model.training.distributed.config import ParallelConfig, Schedule
from windtunnel.console import duration, table
from windtunnel.folding import Folded
from windtunnel.machine.dry_run import DryRun, built_memory
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.one_gpu import OneGpuPlan
from windtunnel.machine.plan import MachinePlan, Order, SharedSequence, Split


def describe_plan(plan: MachinePlan) -> Iterator[RenderableType]:
    """Sizes, memory, time, the split of layers, and what the numbers rest on."""
    parallel, hardware = plan.parallel, plan.hardware
    gigabytes = plan.memory_bytes / 1e9
    rows = [
        (
            "machine",
            f"{hardware.name}: {counted(plan.gpus, 'GPU', 'GPUs')} "
            f"(nodes of {hardware.gpus_per_node})",
        ),
        (
            "parallel",
            f"data {parallel.data} (sharded {parallel.shard}), expert {parallel.expert}, pipeline "
            f"{parallel.pipeline} x {parallel.virtual} stages, tensor 1, context "
            f"{parallel.context}",
        ),
        (
            "micro-batch",
            f"{_sequences(parallel.micro_batch)}, {plan.micro_batches} a step and rank, blocks "
            f"{'computed again' if parallel.recompute else 'kept'} for the backward pass",
        ),
        (
            "memory",
            f"{gigabytes:.2f} GB on the fullest GPU of {hardware.memory_bytes / 1e9:.0f} GB, "
            f"{'fits' if plan.fits else 'more than'} the usable {hardware.usable_memory_frac:.0%}",
        ),
        ("step", f"{plan.step_s:.3g} s, {plan.tokens_per_s:,.0f} tokens/s"),
        ("utilisation", f"{plan.utilisation:.1%} of {hardware.peak_flops_per_s:.3g} FLOP/s"),
        ("time", f"{duration(86_400 * plan.days)}, {_count(plan.gpu_hours)} GPU-hours"),
    ]
    if plan.shared is not None:
        rows.insert(3, ("attention", _shared_text(plan.shared)))
    yield table(["machine plan", ""], rows, left=2)
    if parallel.pipeline > 1:
        costs = ", ".join(f"{kind} {cost:.2f}" for kind, cost in plan.layer_costs.items())
        yield Folded(f"Time of a block over a mixture layer's: {costs}")
        yield table(
            ["split of layers", "step s", "bubble", "imbalance"],
            [_split_row("by time", plan.split), _split_row("uniform", plan.uniform)],
            title="Layers over pipeline stages",
        )
        yield Folded(f"Blocks of each stage by time: {_blocks(plan.split)}")
        yield Folded(f"Blocks of each stage uniform: {_blocks(plan.uniform)}")
        if plan.other_order is not None:
            yield table(
                ["order of the passes", "step s", "bubble", "GB a GPU"],
                _order_rows(plan, plan.other_order),
                title="Schedules at these sizes",
            )
        else:
            yield Folded(
                f"Order of the passes: {_schedule(parallel.schedule, parallel)}; zero-bubble would "
                "compute every block again for each of its gradients"
            )
    for assumption in plan.assumptions:
        yield Folded(f"Assumed: {assumption}")


def _shared_text(shared: SharedSequence) -> str:
    """What a layer spends on a sequence that several ranks share."""
    return (
        f"{1000 * shared.attention_s:.3g} ms a layer and micro-batch, and "
        f"{1000 * shared.gather_s:.3g} ms to gather {shared.bytes / 1e6:,.0f} MB of keys and "
        f"values (a ring would wait {1000 * shared.ring_s:.3g} ms)"
    )


def _order_rows(plan: MachinePlan, other: Order) -> Iterator[tuple[str, ...]]:
    used = f"{_schedule(plan.parallel.schedule, plan.parallel)} (used)"
    yield _order_row(used, plan.split.step_s, plan.split.bubble, plan.memory_bytes)
    name = _schedule(other.schedule, plan.parallel)
    yield _order_row(name, other.step_s, other.bubble, other.memory_bytes)


def _order_row(name: str, step_s: float, bubble: float, memory_bytes: int) -> tuple[str, ...]:
    return name, f"{step_s:.3g}", f"{bubble:.1%}", f"{memory_bytes / 1e9:.2f}"


def _schedule(schedule: Schedule, parallel: ParallelConfig) -> str:
    order = "zero-bubble" if schedule == "zero_bubble" else "1F1B"
    return f"interleaved {order}" if parallel.virtual > 1 else order


def describe_one_gpu(plan: OneGpuPlan, hardware: Hardware) -> RenderableType:
    """Memory at the fullest moment by what it is for, and the time of a step."""
    fits = "fits" if plan.memory_bytes <= hardware.usable_bytes else "does not fit"
    parts = ("weights", "moments", "gradients", "activations", "temporaries")
    rows = [
        ("tokens a step", f"{plan.tokens:,}"),
        *((f"{part}, at the fullest moment", _gigabytes(getattr(plan, part))) for part in parts),
        (
            "memory",
            f"{_gigabytes(plan.memory_bytes)} of {_gigabytes(hardware.memory_bytes)}: {fits} the "
            f"usable {hardware.usable_memory_frac:.0%}",
        ),
        ("step", f"{plan.step_s:.3g} s, {plan.tokens_per_s:,.0f} tokens/s"),
        ("utilisation", f"{plan.utilisation:.1%} of {hardware.peak_flops_per_s:.3g} FLOP/s"),
    ]
    return table([f"one {hardware.name}", ""], rows, left=2)


def _sequences(count: int) -> str:
    return counted(count, "sequence", "sequences")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def describe_dry_run(plan: MachinePlan, found: DryRun) -> Iterator[RenderableType]:
    """Parameters and memory of every rank that was built."""
    rows = [
        (
            str(built.pipeline_rank),
            " + ".join(map(str, built.layers)),
            f"{built.params:,}",
            f"{built.params * plan.parallel.shard:,}",
            f"{built_memory(plan, built) / 1e9:.2f}",
        )
        for built in found.ranks
    ]
    yield table(
        ["pipeline rank", "blocks", "parameters kept", "of all its ranks", "GB a GPU"],
        rows,
        title=f"Built on the meta device for {plan.gpus} ranks",
    )
    yield Text(
        f"All {plan.gpus} ranks have a place; {found.seconds:.1f} s of processor time, "
        f"{found.peak_bytes / 1e9:.2f} GB"
    )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _split_row(name: str, split: Split) -> tuple[str, ...]:
    return name, f"{split.step_s:.3g}", f"{split.bubble:.1%}", f"{split.imbalance:.1%}"


def _blocks(split: Split) -> str:
    runs = [(count, len(list(same))) for count, same in groupby(split.layers)]
    return ", ".join(f"{many} x {count}" if many > 1 else str(count) for count, many in runs)
