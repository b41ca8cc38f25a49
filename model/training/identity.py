"""What makes the checkpoints of a run its own: hashes of all that decides their numbers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from model.config import ModelConfig
from model.training.config import TrainConfig
from model.training.schedules import trunk_schedule
from model.typed import to_plain


def run_identity(model: ModelConfig, config: TrainConfig, corpus_fingerprint: str) -> str:
    """Of a run; neither how often it is saved nor over how many processes it is spread counts."""
    science = to_plain(config)
    del science["checkpoint"]
    return _hash(model, science, corpus_fingerprint)


def trunk_identity(model: ModelConfig, config: TrainConfig, corpus_fingerprint: str) -> str:
    """Equal exactly for runs whose first steps, at a constant rate, have the same bits."""
    science = to_plain(config)
    for name in ("checkpoint", "evaluation", "tokens"):
        del science[name]
    science["schedule"] = to_plain(trunk_schedule(config.schedule))
    return _hash(model, science, corpus_fingerprint)


def _hash(model: ModelConfig, science: dict[str, Any], corpus_fingerprint: str) -> str:
    text = json.dumps([to_plain(model), science, corpus_fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
