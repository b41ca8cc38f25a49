"""A run small enough to train in a second, how it is stopped, and what its folder then holds."""

import json

import pytest
import torch

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training import progress
from model.training.checkpoint import checkpoint_paths, read_checkpoint
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.corpora import SyntheticCorpus
from model.training.learner import model_weights
from model.training.trainer import train

CORPUS = SyntheticCorpus(tokens=60_000, num_symbols=8, order=1, heldout_frac=0.1)
RUNTIME = RuntimeConfig()
MODEL = ModelConfig(
    vocab_size=257,
    hidden_size=16,
    num_layers=2,
    dense_width=32,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, rotary_dim=4),
    moe=MoEConfig(num_experts=8, experts_per_token=2, expert_width=8),
    init_std=0.02,
)
TRAIN = TrainConfig(
    tokens=128 * 30,
    batch_tokens=128,
    sequence_length=32,
    seed=3,
    optimizer=OptimizerConfig(peak_lr=1e-2),
    schedule=ScheduleConfig(),
    balance=BalanceConfig(update_rate=0.01),
    evaluation=EvaluationConfig(heldout_tokens=2048, num_intermediate=1),
    checkpoint=CheckpointConfig(every_s=1e9),
)


class Enough(Exception):
    """Raised by a caller who wants no more steps."""


def enough_at(last):
    """A caller who wants no step after ``last``."""

    def on_progress(step, num_steps, tokens_per_s):
        if step == last:
            raise Enough

    return on_progress


def train_whole(model, config, corpus, run_dir, **options):
    """From the beginning, or from where it was left, to the end."""
    return train(model, config, corpus, RUNTIME, run_dir, **options)


def train_until(last, model, config, corpus, run_dir, **options):
    """Train, and be stopped by the caller after step ``last``."""
    options["on_progress"] = enough_at(last)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(progress, "PROGRESS_EVERY_S", 0.0)
        with pytest.raises(Enough):
            train_whole(model, config, corpus, run_dir, **options)


def lines(run_dir, kind=None):
    """Of metrics.jsonl, all or those of one kind."""
    found = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if kind in (None, line["kind"])]


def lines_without_clock(run_dir):
    """What two runs of one spec must have in common."""
    clock = ("tokens_per_s", "wall_s")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines(run_dir)]


def last_tensors(run_dir):
    """Of the newest checkpoint: weights, optimizer, biases, random state."""
    return read_checkpoint(checkpoint_paths(run_dir / "checkpoints")[0]).tensors


def last_weights(run_dir):
    """The model's own among them, by its names."""
    return model_weights(last_tensors(run_dir))


def assert_same_run(one, other):
    """Every line but for the clock, and every tensor of the last checkpoint."""
    assert lines_without_clock(one) == lines_without_clock(other)
    assert_same_tensors(last_tensors(one), last_tensors(other))


def assert_same_tensors(one, other):
    """The same names with the same bits."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
