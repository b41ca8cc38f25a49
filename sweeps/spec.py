"""One run, resolved: everything that decides its numbers, and the id made from it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from model.config import ModelConfig
from model.errors import ConfigError
from model.training.config import RuntimeConfig, TrainConfig
from model.training.corpora import CorpusConfig
from model.typed import build, to_plain
from sweeps.files import canonical_text, read_json, text_hash

SPEC_VERSION = 7
"""Version of the fields below; adding, removing or renaming one raises it (a test pins them)."""

NUMERICS_VERSION = 5
"""Raised when a change of the model or the trainer changes the bits of a run of the same spec."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What ``spec.json`` holds; runtime, role, rung and trunk do not enter the run id."""

    spec_version: int = SPEC_VERSION
    numerics: int = NUMERICS_VERSION
    rung: str
    role: Literal["grid", "noise", "promoted", "trunk"] = "grid"
    model: ModelConfig
    train: TrainConfig
    corpus: CorpusConfig
    corpus_fingerprint: str
    """Hash of the prepared corpus: documents, split, tokenizer, order, weights."""
    runtime: RuntimeConfig
    trunk: str = ""
    """Id of the run whose first steps are this one's too, and whose snapshots it goes on from."""


def science(spec: RunSpec) -> dict[str, Any]:
    """The fields that decide the numbers, and nothing else.

    Left out: role and rung (what the run is for), runtime (where it computes), what is saved when
    (a resumed run has the same bits), the trunk (a run that shares one, too), and the corpus's
    paths: its fingerprint says what is in it, wherever it lies.
    """
    train = to_plain(spec.train)
    del train["checkpoint"]
    return {
        "spec_version": spec.spec_version,
        "numerics": spec.numerics,
        "model": to_plain(spec.model),
        "train": train,
        "corpus_fingerprint": spec.corpus_fingerprint,
    }


def science_text(spec: RunSpec) -> str:
    """The canonical text of :func:`science`, put together from parts that many runs share.

    A plan of 100,000 runs has few different models and schedules; their texts are kept.
    """
    train = {name: _text_of(getattr(spec.train, name)) for name in _TRAIN_PARTS}
    parts = {
        "spec_version": str(spec.spec_version),
        "numerics": str(spec.numerics),
        "model": _text_of(spec.model),
        "train": _object_text(train),
        "corpus_fingerprint": _text_of(spec.corpus_fingerprint),
    }
    return _object_text(parts)


_TRAIN_PARTS = tuple(sorted({part.name for part in fields(TrainConfig)} - {"checkpoint"}))


@lru_cache(maxsize=65_536, typed=True)  # typed: 1 and True have different texts
def _text_of(part: Hashable) -> str:
    return canonical_text(to_plain(part))


def _object_text(texts: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"


def run_id(spec: RunSpec) -> str:
    """A slug for people and 12 hex digits of the science: ``w64l3e32k4-d524k-s0-3fa91c07be52``.

    The slug says width, layers, experts, experts a token, tokens and seed. Nobody parses it: facts
    are in ``spec.json``. 48 bits make a collision among 100,000 runs a 1 in 50,000 event.
    """
    model, moe = spec.model, spec.model.moe
    experts = f"e{moe.num_experts}k{moe.experts_per_token}" if moe else ""
    slug = f"w{model.hidden_size}l{model.num_layers}{experts}"
    length = f"d{short_count(spec.train.tokens)}-s{spec.train.seed}"
    return f"{slug}-{length}-{text_hash(science_text(spec), digits=12)}"


def short_count(count: float) -> str:
    """Three significant digits and a suffix, for names and tables: 524288 -> ``524k``."""
    for suffix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{suffix}"
    return f"{count:.3g}"


def read_spec(path: Path) -> RunSpec:
    """Read a ``spec.json``; one of another version is refused, not guessed at."""
    mapping = read_json(path)
    version = mapping.get("spec_version") if isinstance(mapping, dict) else None
    if version != SPEC_VERSION:
        raise ConfigError(
            f"{path}: spec version {version}, this program reads {SPEC_VERSION}; "
            "plan the sweep again with this program: a `windtunnel sweep`, `train` or `launch` on "
            "this root keeps its runs under new ids"
        )
    return build(RunSpec, mapping, where=str(path))
