"""The bundle a fit is kept as: laws, evidence, exclusions, noise, hold-out. ``fit.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.holdout import Holdout
from analysis.noise import NoiseFloor
from analysis.points import Points
from analysis.results import Exclusion, Fit
from model.errors import ConfigError
from model.typed import build, to_plain

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything a paper must state about its fit (arXiv:2502.18969), and what predicts from it."""

    schema_version: int = SCHEMA_VERSION
    name: str
    """The sweep, or the table's path."""
    points: Points
    exclusions: tuple[Exclusion, ...]
    protocol: dict[str, Any]
    """What all runs share; empty for a table."""
    protocol_fingerprints: tuple[str, ...]
    convention: str
    """Version of the FLOP and parameter counting convention; empty for a table."""
    surface: Fit
    """L(N, D); its law is a LossSurface."""
    compute_law: Fit
    """L(C) along the compute-optimal frontier; its law is a SaturatingPowerLaw."""
    noise: NoiseFloor | None
    holdouts: tuple[Holdout, ...]
    """One entry per number of budgets left out, fewest first."""

    def to_json(self) -> str:
        """The text of ``fit.json``."""
        return json.dumps(to_plain(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str, *, where: str = "fit.json") -> Study:
        """The study written by :meth:`to_json`."""
        return build(Study, json.loads(text), where=where)

    @staticmethod
    def load(path: Path) -> Study:
        """Read ``fit.json``."""
        if not path.exists():
            raise ConfigError(f"{path}: no such file; run `windtunnel fit` first")
        return Study.from_json(path.read_text(encoding="utf-8"), where=str(path))

    def save(self, path: Path) -> None:
        """Write ``fit.json`` whole or not at all."""
        raise NotImplementedError

    def summary(self, *, flops: float | None = None) -> str:
        """One screen of at most 100 columns."""
        raise NotImplementedError
