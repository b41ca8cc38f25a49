"""A run that met the end of memory: the same batch, gone through in parts half as large.

Each attempt that ends so says it in its outcome, and the next one halves the parts. The gradients
stay those of the whole batch but for the order of their sums; the record says how many parts.
"""

from __future__ import annotations

from pathlib import Path

from model.training.config import TrainConfig
from sweeps.attempt import attempt_dir, read_outcome


def micro_batches(run_dir: Path, train: TrainConfig, attempt: int) -> int:
    """Parts in which attempt number ``attempt`` goes through a batch, at most its sequences."""
    earlier = (read_outcome(attempt_dir(run_dir, number)) for number in range(1, attempt))
    halvings = sum(outcome is not None and outcome.out_of_memory for outcome in earlier)
    return min(2**halvings, train.batch_tokens // train.sequence_length)


def can_be_halved(run_dir: Path, train: TrainConfig, attempt: int) -> bool:
    """Whether there is a smaller part to try."""
    # The auxiliary balance loss is over the whole batch and is no sum over its parts.
    sequences = train.batch_tokens // train.sequence_length
    is_sum = train.balance.aux_loss_weight == 0
    return is_sum and micro_batches(run_dir, train, attempt) < sequences
