"""Training configurations refuse what cannot be trained, naming both values."""

from typing import Any

import pytest

from model.errors import ConfigError
from model.training.config import BalanceConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from model.training.corpora import BpeTokenizer, StdlibCorpus
from model.typed import build

TRAIN: dict[str, Any] = {
    "tokens": 1024,
    "batch_tokens": 256,
    "sequence_length": 128,
    "seed": 0,
    "optimizer": {"peak_lr": 0.01},
    "schedule": {},
    "balance": {},
    "evaluation": {},
    "checkpoint": {},
}


def test_steps_follow_from_tokens_and_batch() -> None:
    assert build(TrainConfig, TRAIN).num_steps == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_tokens": 200}, r"batch_tokens \(200\) must be a multiple of sequence_length"),
        ({"tokens": 1000}, r"tokens \(1000\) must be a multiple of batch_tokens \(256\)"),
        ({"tokens": -1024}, r"tokens must be positive, got -1024"),
        ({"precision": "fp4"}, r"precision: 'fp4' is not one of: fp32, bf16"),
        ({"optimizer": {"peak_lr": 0}}, r"optimizer: peak_lr must be positive"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(TrainConfig, {**TRAIN, **change})


def test_parts_refuse_too() -> None:
    with pytest.raises(ConfigError, match=r"warmup_frac \(0.5\) and decay_frac \(0.6\) overlap"):
        ScheduleConfig(warmup_frac=0.5, decay_frac=0.6)
    with pytest.raises(ConfigError, match="beta2 must be in"):
        OptimizerConfig(peak_lr=1e-3, beta2=1.0)
    with pytest.raises(ConfigError, match="update_rate must be >= 0"):
        BalanceConfig(update_rate=-1.0)
    with pytest.raises(ConfigError, match=r"weights must sum to 1, they sum to 0\.9"):
        StdlibCorpus(weights={"code": 0.5, "prose": 0.4})
    with pytest.raises(ConfigError, match="vocab_size must be >= 257, got 12"):
        BpeTokenizer(vocab_size=12)
