"""Learning rate, batch and steps of a run against the published laws."""

from dataclasses import replace
from pathlib import Path

import pytest
from toy_plans import LING_MINI, SHAPE, TRAINING, small_sweep

from model.accounting import flops_per_token
from model.errors import ConfigError
from model.training.config import ScheduleConfig, TrainConfig
from model.training.schedules import learning_rate
from sweeps.recipe import ShapeRecipe, TrainingRecipe
from sweeps.shape import shape_for
from sweeps.training import Trunk, train_for


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


def test_a_warm_up_in_tokens_may_reach_to_the_decay_and_no_further():
    """A decay over 95% of 10,240 tokens begins after 512; the default warmup_frac has no say."""
    model = shape_for(SHAPE, 2e5, 32, 257)

    def with_warmup(tokens: int) -> TrainConfig:
        schedule = ScheduleConfig(decay_frac=0.95, warmup_frac=0.2, warmup_tokens=tokens)
        sweep = replace(small_sweep(Path("unused")), schedule=schedule)
        return train_for(sweep, model=model, tokens=10_240, seed=0)

    run = with_warmup(512)
    assert run.tokens == 10_240
    rates = [learning_rate(run, step) / run.optimizer.peak_lr for step in range(run.num_steps)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) > 0.8
    message = (
        r"warmup_tokens \(513\) and decay_frac \(0.95\) overlap in a run of 10240 .* after 512"
    )
    with pytest.raises(ConfigError, match=message):
        with_warmup(513)


def test_runs_of_a_trunk_take_no_warm_up_of_their_own():
    schedule = ScheduleConfig(trunk=True, warmup_tokens=512)
    sweep = replace(small_sweep(Path("unused")), schedule=schedule)
    trunk = Trunk(shortest=10_240, longest=20_480, warmup_of=10_240)
    with pytest.raises(ConfigError, match=r"schedule.warmup_tokens \(512\): runs that share"):
        train_for(sweep, model=shape_for(SHAPE, 2e5, 32, 257), tokens=10_240, seed=0, trunk=trunk)
