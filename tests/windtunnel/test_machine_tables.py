"""The machine plan's screen: every number in its unit, worked out by hand from a plan made up."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import RenderableType

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.errors import ConfigError
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.distributed.config import ParallelConfig
from windtunnel.commands.machine import Config
from windtunnel.composition import load
from windtunnel.console import make_console
from windtunnel.machine.dry_run import BuiltRank, DryRun, built_memory, dry_run
from windtunnel.machine.memory_plan import RankMemory
from windtunnel.machine.one_gpu import one_gpu_plan
from windtunnel.machine.plan import MachinePlan, Order, SharedSequence, Split, plan_for
from windtunnel.machine.tables import describe_dry_run, describe_one_gpu, describe_plan
from windtunnel.yaml_folders import CONF_DIR

MODEL = ModelConfig(
    vocab_size=256,
    hidden_size=64,
    num_layers=4,
    dense_width=128,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, rotary_dim=8),
    moe=MoEConfig(num_experts=8, experts_per_token=2, expert_width=32),
)
TRAIN = TrainConfig(
    tokens=64 * 128 * 10,
    batch_tokens=64 * 128,
    sequence_length=128,
    seed=0,
    optimizer=OptimizerConfig(peak_lr=1e-3),
    schedule=ScheduleConfig(),
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(),
    checkpoint=CheckpointConfig(),
    precision="bf16",
)


def lines_of(parts: Iterable[RenderableType]) -> list[str]:
    screen = io.StringIO()
    console = make_console(screen)
    for part in parts:
        console.print(part)
    return [" ".join(line.split()) for line in screen.getvalue().splitlines()]


def hardware() -> Any:
    found = load("machine", Config, ["hardware=h100"], (CONF_DIR,)).hardware
    return replace(
        found, memory_bytes=80_000_000_000, usable_memory_frac=0.5, peak_flops_per_s=2.5e14
    )


def rank(place: int, total: int) -> RankMemory:
    return RankMemory(
        pipeline_rank=place,
        params=1_000_000,
        states=16_000_000,
        gathered=0,
        gradients=0,
        activations=total - 16_000_000,
    )


@pytest.fixture
def made_up() -> MachinePlan:
    sizes = ParallelConfig(
        replicate=2,
        shard=4,
        expert=2,
        pipeline=2,
        virtual=2,
        micro_batch=2,
        layers=(1, 1, 0, 2),
    )
    plan = plan_for(MODEL, TRAIN, hardware(), sizes)
    return replace(
        plan,
        memory=(rank(0, 12_340_000_000), rank(1, 9_870_000_000)),
        step_s=0.1234,
        days=1.5,
        gpu_hours=576.4,
        tokens_per_s=66_385.7,
        utilisation=0.4567,
        split=Split(layers=(1, 1, 0, 2), step_s=0.1234, bubble=0.125, imbalance=0.0321),
        uniform=Split(layers=(1, 1, 1, 1), step_s=0.15, bubble=0.2, imbalance=0.25),
        other_order=Order(
            schedule="zero_bubble", step_s=0.1111, bubble=0.0625, memory_bytes=15_500_000_000
        ),
        layer_costs={"dense": 0.5, "mixture": 1.0},
    )


def test_a_plan_s_screen_has_every_number_in_its_unit(made_up: MachinePlan) -> None:
    lines = lines_of(describe_plan(made_up))
    gpus = f"{made_up.hardware.name}: 16 GPUs (nodes of {made_up.hardware.gpus_per_node})"
    assert f"machine {gpus}" in lines
    sizes = "data 8 (sharded 4), expert 2, pipeline 2 x 2 stages, tensor 1, context 1"
    assert f"parallel {sizes}" in lines
    # 64 sequences among 8 ranks, two at a time.
    assert "micro-batch 2 sequences, 4 a step and rank, blocks kept for the backward pass" in lines
    assert "memory 12.34 GB on the fullest GPU of 80 GB, fits the usable 50%" in lines
    assert "step 0.123 s, 66,386 tokens/s" in lines
    assert "utilisation 45.7% of 2.5e+14 FLOP/s" in lines
    assert "time 1 d 12 h, 576 GPU-hours" in lines
    assert "by time 0.123 12.5% 3.2%" in lines
    assert "uniform 0.15 20.0% 25.0%" in lines
    assert "Blocks of each stage by time: 2 x 1, 0, 2" in lines
    assert "Blocks of each stage uniform: 4 x 1" in lines
    assert "interleaved 1F1B (used) 0.123 12.5% 12.34" in lines
    assert "interleaved zero-bubble 0.111 6.2% 15.50" in lines
    assert any(
        "Time of a block over a mixture layer's: dense 0.50, mixture 1.00" in x for x in lines
    )
    assert not any(line.startswith("attention") for line in lines)


def test_what_a_plan_lacks_is_said(made_up: MachinePlan) -> None:
    sizes = replace(made_up.parallel, virtual=1, layers=(2, 2), recompute=True)
    full = replace(
        made_up,
        parallel=sizes,
        other_order=None,
        memory=(rank(0, 40_000_000_001),),
        gpu_hours=12.345,
        shared=SharedSequence(
            gather_s=0.00125, ring_s=0.0005, attention_s=0.0025, bytes=1_234_000_000
        ),
    )
    lines = lines_of(describe_plan(full))
    assert "memory 40.00 GB on the fullest GPU of 80 GB, more than the usable 50%" in lines
    assert any("blocks computed again for the backward pass" in line for line in lines)
    assert any(line.endswith("12.3 GPU-hours") for line in lines)
    assert (
        "Order of the passes: 1F1B; zero-bubble would compute every block again for each of its"
        in (" ".join(lines))
    )
    shared = "attention 2.5 ms a layer and micro-batch, and 1.25 ms to gather 1,234 MB of keys and"
    assert any(line.startswith(shared) for line in lines)
    assert "a ring would wait 0.5 ms" in " ".join(lines)


def test_one_process_has_no_pipeline_to_show() -> None:
    plan = plan_for(MODEL, TRAIN, hardware(), ParallelConfig(shard=2))
    lines = lines_of(describe_plan(plan))
    assert any("2 GPUs" in line for line in lines)
    assert not any(
        "Blocks of each stage" in line or "Order of the passes" in line for line in lines
    )
    assert any("micro-batch 1 sequence, 32 a step and rank" in line for line in lines)


def test_what_was_built_is_shown_rank_by_rank(made_up: MachinePlan) -> None:
    """Sixteen bytes a parameter of states, in place of the plan's million parameters."""
    built = (
        BuiltRank(pipeline_rank=0, layers=(1, 0), params=1_250_000, tensors=9),
        BuiltRank(pipeline_rank=1, layers=(1, 2), params=750_000, tensors=9),
    )
    assert built_memory(made_up, built[0]) == 12_340_000_000 + 250_000 * 16
    assert built_memory(made_up, built[1]) == 9_870_000_000 - 250_000 * 16
    found = DryRun(ranks=built, seconds=2.54, peak_bytes=1_260_000_000)
    lines = lines_of(describe_dry_run(made_up, found))
    assert "0 1 + 0 1,250,000 5,000,000 12.34" in lines
    assert "1 1 + 2 750,000 3,000,000 9.87" in lines
    assert "All 16 ranks have a place; 2.5 s of processor time, 1.26 GB" in lines


def test_a_single_gpu_is_shown_by_what_fills_it() -> None:
    plan = one_gpu_plan(
        MODEL,
        hardware(),
        sequence_length=128,
        sequences=4,
        recompute=True,
        updates_in_backward=False,
    )
    sizes = {
        "weights": 10_000_000_000,
        "moments": 20_000_000_000,
        "gradients": 3_000_000_000,
        "activations": 6_000_000_000,
        "temporaries": 1_000_000_000,
    }
    full = replace(plan, **sizes, step_s=0.25, tokens_per_s=2048.4, utilisation=0.125)
    assert full.memory_bytes == 40_000_000_000
    lines = lines_of([describe_one_gpu(full, hardware())])
    assert "tokens a step 512" in lines
    for part, size in sizes.items():
        assert f"{part}, at the fullest moment {size / 1e9:.0f}.00 GB" in lines
    assert "memory 40.00 GB of 80.00 GB: fits the usable 50%" in lines
    assert "step 0.25 s, 2,048 tokens/s" in lines
    assert "utilisation 12.5% of 2.5e+14 FLOP/s" in lines
    more = replace(full, temporaries=1_000_000_001)
    assert any(
        "does not fit the usable 50%" in x for x in lines_of([describe_one_gpu(more, hardware())])
    )


def test_a_built_rank_may_differ_by_a_row_a_tensor_and_no_more() -> None:
    sizes = ParallelConfig(shard=4, expert=2)
    plan = plan_for(MODEL, TRAIN, hardware(), sizes)
    (built,) = dry_run(MODEL, TRAIN, plan).ranks
    assert built.layers == (4,)
    spare = built.tensors * 128  # the wider of 64 and 128
    for off, is_refused in ((spare, False), (spare + 1, True), (-spare - 1, True)):
        wrong = replace(plan, memory=(replace(plan.memory[0], params=built.params + off),))
        if is_refused:
            with pytest.raises(ConfigError, match=f"holds {built.params:,} parameters, the plan"):
                dry_run(MODEL, TRAIN, wrong)
        else:
            dry_run(MODEL, TRAIN, wrong)


def test_sizes_that_do_not_fit_are_refused_before_anything_is_built(made_up: MachinePlan) -> None:
    wrong = replace(made_up, parallel=replace(made_up.parallel, micro_batch=3))
    with pytest.raises(ConfigError, match="does not divide into data"):
        dry_run(MODEL, TRAIN, wrong)


def test_what_building_took_is_of_this_build() -> None:
    plan = plan_for(MODEL, TRAIN, hardware(), ParallelConfig(shard=2))

    began = time.process_time()
    found = dry_run(MODEL, TRAIN, plan)
    assert 0 <= found.seconds <= time.process_time() - began
    assert found.peak_bytes > 10_000_000
