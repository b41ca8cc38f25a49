"""A machine plan on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import RenderableType
from rich.text import Text

from windtunnel.console import duration, table
from windtunnel.machine.dry_run import DryRun, built_memory
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.one_gpu import OneGpuPlan
from windtunnel.machine.plan import MachinePlan, Split


def describe_plan(plan: MachinePlan) -> Iterator[RenderableType]:
    """Sizes, memory, time, the split of layers, and what the numbers rest on."""
    parallel, hardware = plan.parallel, plan.hardware
    gigabytes = plan.memory_bytes / 1e9
    rows = [
        ("machine", f"{plan.gpus} {hardware.name}, {hardware.gpus_per_node} a node"),
        (
            "parallel",
            f"data {parallel.data} (sharded {parallel.shard}), expert {parallel.expert}, pipeline "
            f"{parallel.pipeline} x {parallel.virtual} stages, tensor 1, context {plan.context}",
        ),
        (
            "micro-batch",
            f"{parallel.micro_batch} sequences, {plan.micro_batches} a step and rank, blocks "
            f"{'computed again' if parallel.recompute else 'kept'} for the backward pass",
        ),
        (
            "memory",
            f"{gigabytes:.2f} GB on the fullest GPU of {hardware.memory_bytes / 1e9:.0f} GB",
        ),
        ("step", f"{plan.step_s:.3g} s, {plan.tokens_per_s:,.0f} tokens/s"),
        ("utilisation", f"{plan.utilisation:.1%} of {hardware.peak_flops_per_s:.3g} FLOP/s"),
        ("time", f"{duration(86_400 * plan.days)}, {_count(plan.gpu_hours)} GPU-hours"),
    ]
    yield table(["machine plan", ""], rows, left=2)
    if parallel.pipeline > 1:
        costs = ", ".join(f"{kind} {cost:.2f}" for kind, cost in plan.layer_costs.items())
        yield Text(f"Time of a block over a mixture layer's: {costs}")
        yield table(
            ["split of layers", "step s", "bubble", "imbalance", "blocks of each stage"],
            [_split_row("by time", plan.split), _split_row("uniform", plan.uniform)],
            title="Layers over pipeline stages",
        )
    for assumption in plan.assumptions:
        yield Text(f"Assumed: {assumption}")


def describe_one_gpu(plan: OneGpuPlan, hardware: Hardware) -> RenderableType:
    """Memory at the fullest moment by what it is for, and the time of a step."""
    room = hardware.memory_bytes * hardware.usable_memory_frac
    fits = "fits" if plan.memory_bytes <= room else "does not fit"
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
    runs = [(count, len(list(same))) for count, same in groupby(split.layers)]
    blocks = ", ".join(f"{many} x {count}" if many > 1 else str(count) for count, many in runs)
    return (
        name,
        f"{split.step_s:.3g}",
        f"{split.bubble:.1%}",
        f"{split.imbalance:.1%}",
        blocks,
    )
