"""Learning rate, batch and steps of a run against the published laws."""

from dataclasses import replace
from pathlib import Path

import pytest
from toy_plans import LING_MINI, SHAPE, TRAINING, small_sweep

from model.accounting import flops_per_token
from model.errors import ConfigError
from model.training.config import TrainConfig
from sweeps.recipe import ShapeRecipe, TrainingRecipe
from sweeps.shape import shape_for
from sweeps.training import train_for


def train(recipe: TrainingRecipe, shape: ShapeRecipe, tokens: int, sequence: int) -> TrainConfig:
    sweep = small_sweep(Path("unused"))
    sweep = replace(sweep, sequence_length=sequence, recipe=replace(sweep.recipe, training=recipe))
    model = shape_for(shape, 6.75e9 if sequence == 4096 else 2e5, sequence, 157_184)
    return train_for(sweep, model=model, tokens=tokens, seed=0)


def test_the_laws_give_the_published_learning_rate_and_batch_of_ling_mini():
    recipe = replace(TRAINING, peak_lr_factor=1.0)
    config = train(recipe, LING_MINI, tokens=20 * 10**12, sequence=4096)
    assert config.optimizer.peak_lr == pytest.approx(3.36e-4, rel=2e-3)
    # The law gives 4546 sequences where the report rounds down to 4400.
    assert config.batch_tokens / 4096 == pytest.approx(4546, rel=1e-2)


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
    shortest = train(replace(TRAINING, batch_factor=100.0), SHAPE, 32 * TRAINING.min_steps - 32, 32)
    assert (shortest.batch_tokens, shortest.num_steps) == (32, TRAINING.min_steps - 1)


def test_the_learning_rate_is_read_at_the_compute_the_run_takes():
    config = train(TRAINING, SHAPE, 10_000, 32)
    size = flops_per_token(shape_for(SHAPE, 2e5, 32, 157_184), 32).house
    expected = 0.5 * 1.1576 * (size * config.tokens) ** -0.1529
    assert config.optimizer.peak_lr == pytest.approx(expected)


def test_a_run_takes_over_everything_else_that_is_set():
    sweep = small_sweep(Path("unused"))
    run = train_for(sweep, model=shape_for(SHAPE, 2e5, 32, 257), tokens=10_000, seed=7)
    named = set(sweep.settings()) & set(TrainConfig.__dataclass_fields__)
    assert named == set(sweep.settings()) - {"recipe"}
    assert {name: getattr(run, name) for name in named} == {
        name: getattr(sweep, name) for name in named
    }
    assert run.seed == 7


def test_a_negative_weight_of_the_second_token_is_refused():
    with pytest.raises(ConfigError, match=r"mtp_loss_weight must be >= 0, got -0\.1"):
        replace(small_sweep(Path("unused")), mtp_loss_weight=-0.1)
