"""Where a run's numbers go: ``metrics.jsonl``, which is the truth, and a mirror where one is named.

Lines of ``metrics.jsonl`` are JSON objects of these kinds:

- ``kind: train``, about 200 a run: ``step``, ``tokens`` (seen so far), ``train_loss_nats`` (mean
  over the steps since the line before), ``mtp_loss_nats``, ``lr``, ``grad_norm`` (largest since the
  line before, unclipped), ``layers`` (block numbers) and beside it, one number a layer, ``max_vio``
  and ``min_vio`` (of single batches, mean over the steps since the line before),
  ``normalized_entropy`` and ``dead_frac`` (of those steps together); ``tokens_per_s``, ``wall_s``.
- ``kind: eval``, at even distances and at the end (``final: true``): ``step``, ``tokens``,
  ``loss_nats``, ``bits_per_byte`` and ``by_domain`` on held-out text, ``layers`` and beside it the
  numbers of :class:`~model.training.evaluation.LayerLoad`, one a layer. The last one has
  ``load_by_domain`` (domain to [layer][expert], shares) and ``pairs``, by layer the co-activation
  of up to 32 ``experts`` as a matrix ``share``.
- ``kind: fp8``, every 100 steps of a run in FP8: by layer ``underflow``, ``cosine`` and
  ``weight_cosine``, and in ``fallen`` the layers that compute in bfloat16 from there on, and why.
- ``kind: stage``, at the end of each stage of a run with stages: ``name``, ``steps``,
  ``sequence_length``, ``loss_nats`` and ``by_position``: (first position, nats) of doubling ranges.
- ``kind: rewind``, where a run went back: ``step`` and ``tokens`` it is at again, ``from_step``,
  ``reason``, ``skipped_tokens``; the lines in between were dropped.
- ``kind: diverged``, at the end of a run that went wrong: ``step``, ``tokens``, ``reason``.

Only ``tokens_per_s`` and ``wall_s`` tell an interrupted run from an undisturbed one.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from model.accounting import count_params, flops_per_token
from model.config import ModelConfig
from model.files import sync_file
from model.training.config import (
    JsonlTracker,
    TensorboardTracker,
    TrackerConfig,
    TrainConfig,
    WandbTracker,
)
from model.training.mirrors import Mirror, NoMirror
from model.training.tensorboard_mirror import TensorboardMirror
from model.training.wandb_mirror import WandbMirror
from model.typed import to_plain


class Metrics(Protocol):
    """Where the lines of one process go."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""

    def cut(self, offset: int) -> None:
        """Drop what was written after ``offset``."""

    def synced_offset(self) -> int:
        """Length of what was written, all of it on disk."""

    def close(self) -> None:
        """No more lines."""


class NoMetrics:
    """Of a process among many that is not the one that writes."""

    def write(self, line: Mapping[str, Any]) -> None:
        """The first process writes it."""

    def cut(self, offset: int) -> None:
        """The first process does."""

    def synced_offset(self) -> int:
        """Nothing was written."""
        return 0

    def close(self) -> None:
        """Nothing is open."""


class MetricsFile:
    """Lines of JSON, each complete or absent; cut back to a checkpoint's offset on resuming."""

    def __init__(self, path: Path, offset: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self.cut(offset)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line in one system call, so that a reader never sees half of one.

        Raises:
            OSError: there is no room for it; then nothing of it stays.
        """
        left = json.dumps(line, allow_nan=False).encode() + b"\n"
        start = self._file.tell()
        try:
            while left:  # a full disk takes a part, and only then says why
                left = left[self._file.write(left) :]
        except OSError:
            self.cut(start)
            raise

    def cut(self, offset: int) -> None:
        """Drop what was written after ``offset``."""
        self._file.truncate(offset)
        self._file.seek(0, os.SEEK_END)

    def synced_offset(self) -> int:
        """Length of the file, all of it on disk."""
        sync_file(self._file)
        return self._file.tell()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def open_mirror(
    config: TrackerConfig,
    run_dir: Path,
    run_id: str,
    settings: Mapping[str, Any],
    name: str = "",
) -> Mirror:
    """The mirror ``config`` asks for; ``run_id`` empty for a run that begins."""
    match config:
        case JsonlTracker():
            return NoMirror()
        case WandbTracker():
            return WandbMirror(config, run_dir, run_id or uuid.uuid4().hex[:16], settings, name)
        case TensorboardTracker():
            return TensorboardMirror(config, run_dir, run_id, settings, name)


def run_settings(model_config: ModelConfig, config: TrainConfig) -> dict[str, Any]:
    """What a mirror is told of a run before its first line: its configs, and what follows."""
    counts = count_params(model_config)
    flops = flops_per_token(model_config, config.sequence_length).house
    return {
        "model": to_plain(model_config),
        "train": to_plain(config),
        "size": {
            "total_params": counts.total,
            "active_params": counts.active,
            "active_non_embedding_params": counts.active_non_embedding,
            "flops_per_token": flops,
            "train_flops": flops * config.tokens,
        },
    }
