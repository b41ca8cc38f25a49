"""One run, resolved: everything that decides its numbers, and the id made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig
from model.training.config import CorpusConfig, RuntimeConfig, TrainConfig

SPEC_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What ``spec.json`` holds. ``runtime``, ``role`` and ``rung`` do not enter the run id."""

    spec_version: int = SPEC_VERSION
    rung: str
    role: Literal["grid", "noise", "promoted"] = "grid"
    model: ModelConfig
    train: TrainConfig
    corpus: CorpusConfig
    corpus_fingerprint: str
    """Hash of the prepared corpus: documents, split, tokenizer, order, weights."""
    runtime: RuntimeConfig
