"""The learning rate over a run: shapes, ends, and that the batch hardly matters."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.schedules import decay_shape, learning_rate, lr_factor

WSD = ScheduleConfig(warmup_frac=0.1, decay_frac=0.25, decay_shape="1-sqrt", final_frac=0.2)


@pytest.mark.parametrize(
    ("schedule", "frac", "expected"),
    [
        (WSD, 0.05, 0.5),
        (WSD, 0.1, 1.0),
        (WSD, 0.75, 1.0),
        (WSD, 0.75 + 0.25 * 0.25, 0.2 + 0.8 * 0.5),  # 1 - sqrt(1/4)
        (WSD, 1.0, 0.2),
        (replace(WSD, decay_shape="linear"), 0.875, 0.2 + 0.8 * 0.5),
        (replace(WSD, decay_shape="cosine"), 0.875, 0.2 + 0.8 * 0.5),
        (replace(WSD, kind="cosine"), 0.55, 0.2 + 0.8 * 0.5),
        (replace(WSD, kind="cosine"), 1.0, 0.2),
        (replace(WSD, kind="constant"), 0.05, 0.5),
        (replace(WSD, kind="constant"), 1.0, 1.0),
        (ScheduleConfig(warmup_frac=0.0, decay_frac=0.0), 0.0, 1.0),
        (ScheduleConfig(warmup_frac=0.0, decay_frac=0.0), 1.0, 1.0),
        (ScheduleConfig(warmup_frac=1.0, decay_frac=0.0), 0.999, 0.999),
    ],
)
def test_factor(schedule, frac, expected):
    assert lr_factor(schedule, frac) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", ["linear", "1-sqrt", "cosine"])
def test_decay_shapes_fall_from_one_to_zero(shape):
    values = [decay_shape(shape, i / 100) for i in range(101)]

    assert values[0] == 1
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in pairwise(values))


def config(batch_tokens, schedule):
    return TrainConfig(
        tokens=2**20,
        batch_tokens=batch_tokens,
        sequence_length=128,
        seed=0,
        optimizer=OptimizerConfig(peak_lr=2.0),
        schedule=schedule,
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
    )


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
def test_rate_summed_over_tokens_does_not_depend_on_the_batch(kind):
    schedule = replace(WSD, kind=kind, final_frac=0.0)
    sums = []
    for batch_tokens in (512, 4096, 16_384):
        run = config(batch_tokens, schedule)
        rates = [learning_rate(run, step) for step in range(run.num_steps)]
        assert min(rates) > 0
        assert max(rates) <= 2.0
        sums.append(math.fsum(rates) * batch_tokens)
    assert sums == pytest.approx([sums[0]] * 3, rel=2e-3)
