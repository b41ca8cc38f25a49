"""Sweeps small enough to train in a second, for the tests and the benchmarks of the engine."""

from dataclasses import replace
from pathlib import Path

from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    RuntimeConfig,
    ScheduleConfig,
)
from model.training.corpora import SyntheticCorpus
from sweeps.grid import replaced
from sweeps.ladder import LadderConfig
from sweeps.plan import SweepConfig
from sweeps.recipe import PowerLawRule, Recipe, ShapeRecipe, TrainingRecipe

CORPUS = SyntheticCorpus(tokens=40_000)

SHAPE = ShapeRecipe(
    width_multiple=16,
    head_dim=8,
    heads_per_kv_head=2,
    rotary_frac=0.5,
    rope_base=1e4,
    width_per_layer=24,
    min_layers=2,
    dense_layer_frac=0.0,
    dense_width_ratio=2.5,
    num_experts=8,
    experts_per_token=2,
    num_shared_experts=1,
    granularity=8.0,
    expert_width_multiple=2,
    num_groups=2,
    groups_per_token=1,
    score="sigmoid",
    selection_bias=True,
    routed_scale=2.5,
    qk_norm=True,
    mtp_depth=0,
    init_std=0.006,
    init_width=2048,
)

# Ling-mini-2.0 (arXiv:2510.22115, table 1; the published converter): 20 layers of width 2048, 16
# query and 4 key-value heads of 128, experts of 512, a dense layer of 5120.
LING_MINI = replace(
    SHAPE,
    width_multiple=256,
    head_dim=128,
    heads_per_kv_head=4,
    width_per_layer=102.4,
    min_layers=1,
    dense_layer_frac=1 / 20,
    num_experts=256,
    experts_per_token=8,
    expert_width_multiple=128,
    num_groups=8,
    groups_per_token=4,
)

TRAINING = TrainingRecipe(
    peak_lr=PowerLawRule(coefficient=1.1576, exponent=-0.1529),
    peak_lr_factor=0.5,
    batch_tokens=PowerLawRule(coefficient=0.0694, exponent=0.3644),
    batch_factor=1.0,
    min_steps=8,
    optimizer="adamw",
    beta1=0.9,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
)


def small_sweep(data_dir: Path) -> SweepConfig:
    """Two sizes at two budgets, and two further seeds of the cheapest cell: six runs."""
    return SweepConfig(
        name="small",
        ladder=LadderConfig(
            sizes=2,
            smallest_flops_per_token=4e4,
            size_ratio=3.0,
            budgets=2,
            smallest_tokens=1024,
            budget_ratio=2.0,
            seed=0,
            noise_seeds=(1, 2),
            noise_size=0,
            noise_budget=0,
        ),
        recipe=Recipe(name="small", shape=SHAPE, training=TRAINING),
        corpus=CORPUS,
        sequence_length=32,
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(heldout_tokens=512, num_intermediate=1),
        checkpoint=CheckpointConfig(every_s=0.0),
        precision="fp32",
        mtp_loss_weight=0.1,
        runtime=RuntimeConfig(data_dir=data_dir),
    )


def wide_sweep(data_dir: Path, num_seeds: int = 11) -> SweepConfig:
    """The same four cells, each with so many seeds."""
    quiet = replaced(small_sweep(data_dir), {"ladder.noise_seeds": []})
    return replace(quiet, name="wide", axes={"ladder.seed": tuple(range(num_seeds))})
