"""The recipe against an exhaustive search and against the published models and laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from toy_plans import SHAPE, TRAINING

from model.accounting import flops_per_token
from model.errors import ConfigError
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    ScheduleConfig,
    TrainConfig,
)
from sweeps.ladder import LadderConfig, grid_cells, noise_cells
from sweeps.recipe import ShapeRecipe, TrainingRecipe, _shape_of_width, shape_for, train_for

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


def train(recipe: TrainingRecipe, shape: ShapeRecipe, tokens: int, sequence: int) -> TrainConfig:
    return train_for(
        recipe,
        model=shape_for(shape, 6.75e9 if sequence == 4096 else 2e5, sequence, 157_184),
        tokens=tokens,
        sequence_length=sequence,
        seed=0,
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
        precision="fp32",
        mtp_loss_weight=0.1,
    )


def test_the_recipe_of_ling_mini_gives_ling_mini():
    shape = shape_for(LING_MINI, 6.75e9, 4096, 157_184)
    assert (shape.hidden_size, shape.num_layers, shape.num_dense_layers) == (2048, 20, 1)
    assert shape.dense_width == 5120
    assert (shape.attention.num_heads, shape.attention.num_kv_heads) == (16, 4)
    assert shape.attention.rotary_dim == 64
    assert shape.moe is not None
    assert shape.moe.expert_width == 512
    assert shape.granularity == 8
    assert shape.init_std == pytest.approx(0.006)


def test_the_laws_give_the_published_learning_rate_and_batch_of_ling_mini():
    recipe = replace(TRAINING, peak_lr_factor=1.0)
    config = train(recipe, LING_MINI, tokens=20 * 10**12, sequence=4096)
    assert config.optimizer.peak_lr == pytest.approx(3.36e-4, rel=2e-3)
    # The law gives 4546 sequences where the report rounds down to 4400.
    assert config.batch_tokens / 4096 == pytest.approx(4546, rel=1e-2)


@pytest.mark.parametrize("target", [4.2e4, 1.3e5, 6.6e5, 9e6, 3e8])
def test_no_other_width_lies_nearer_to_the_target(target):
    def distance(shape):
        return abs(math.log(flops_per_token(shape, 32).house / target))

    found = shape_for(SHAPE, target, 32, 257)
    # Every width up to twice the found one, found through recipes that allow that width alone.
    for width in range(16, 2 * found.hidden_size + 1, 16):
        alone = replace(SHAPE, width_multiple=width)
        other = shape_for(alone, target, 32, 257) if width <= found.hidden_size else None
        if other is not None and other.hidden_size == width:
            assert distance(found) <= distance(other)
    assert found.hidden_size % 16 == 0


@pytest.mark.parametrize("recipe", [SHAPE, replace(LING_MINI, dense_layer_frac=0.05)])
def test_the_width_that_is_found_is_that_of_a_search_through_all(recipe):
    multiple = recipe.width_multiple
    shapes = [_shape_of_width(recipe, step * multiple, 257) for step in range(1, 100)]
    sizes = [flops_per_token(shape, 32).house for shape in shapes]
    for target in np.geomspace(sizes[0], sizes[80], 60):
        nearest = min(range(99), key=lambda index: abs(math.log(sizes[index] / target)))
        assert shape_for(recipe, float(target), 32, 257) == shapes[nearest]


def test_shapes_grow_with_the_target_and_keep_their_ratios():
    shapes = [shape_for(SHAPE, 5e4 * 2**n, 32, 257) for n in range(12)]
    sizes = [flops_per_token(shape, 32).house for shape in shapes]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 8
    for shape in shapes:
        assert shape.granularity == 8
        assert shape.attention.num_heads == 2 * shape.attention.num_kv_heads


def test_a_target_below_the_smallest_model_is_refused():
    with pytest.raises(ConfigError, match=r"flops_per_token 1e\+03 is out of reach: the smallest"):
        shape_for(SHAPE, 1e3, 32, 257)


def test_the_dense_twin_has_the_active_width_of_the_mixture():
    mixture = shape_for(SHAPE, 1e6, 32, 257)
    dense = shape_for(replace(SHAPE, dense=True), 1e6, 32, 257)
    assert dense.moe is None
    assert mixture.moe is not None
    assert dense.hidden_size == mixture.hidden_size
    assert dense.dense_width == 3 * mixture.moe.expert_width


def test_batches_are_whole_sequences_and_tokens_whole_batches():
    for tokens in (100, 999, 5000, 123_457):
        config = train(TRAINING, SHAPE, tokens, 32)
        assert config.batch_tokens % 32 == 0
        assert config.tokens % config.batch_tokens == 0
        assert abs(config.tokens - tokens) <= config.batch_tokens / 2 or config.num_steps == 1


def test_the_batch_shrinks_rather_than_take_too_few_steps():
    few = train(replace(TRAINING, batch_factor=100.0), SHAPE, 16_384, 32)
    assert few.num_steps == TRAINING.min_steps
    many = train(TRAINING, SHAPE, 16_384, 32)
    assert many.num_steps > TRAINING.min_steps


def test_the_learning_rate_is_read_at_the_compute_the_run_takes():
    config = train(TRAINING, SHAPE, 10_000, 32)
    size = flops_per_token(shape_for(SHAPE, 2e5, 32, 157_184), 32).house
    expected = 0.5 * 1.1576 * (size * config.tokens) ** -0.1529
    assert config.optimizer.peak_lr == pytest.approx(expected)


LADDER = LadderConfig(
    sizes=3,
    smallest_flops_per_token=100.0,
    size_ratio=2.0,
    budgets=2,
    smallest_tokens=1000,
    budget_ratio=3.0,
    seed=0,
    noise_seeds=(1, 2),
    noise_size=1,
    noise_budget=1,
)


def test_a_ladder_is_sizes_times_budgets_and_the_seeds_of_one_cell():
    cells = [(cell.rung, cell.flops_per_token, cell.tokens) for cell in grid_cells(LADDER)]
    assert cells == [
        ("r0", 100, 1000),
        ("r0", 100, 3000),
        ("r1", 200, 1000),
        ("r1", 200, 3000),
        ("r2", 400, 1000),
        ("r2", 400, 3000),
    ]
    noise = list(noise_cells(LADDER))
    assert [(c.role, c.rung, c.tokens, c.seed) for c in noise] == [
        ("noise", "r1", 3000, 1),
        ("noise", "r1", 3000, 2),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": 0}, "sizes must be positive, got 0"),
        ({"size_ratio": 1.0}, "size_ratio must be above 1"),
        ({"noise_size": 3}, r"noise_size \(3\) counts from 0, and sizes is 3: at most 2"),
        ({"noise_seeds": (0, 1)}, "equal seeds measure no noise"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(LADDER, **change)


def test_the_place_of_a_noise_cell_that_is_not_asked_for_does_not_matter():
    assert replace(LADDER, budgets=1, noise_seeds=(), noise_budget=1).noise_seeds == ()
