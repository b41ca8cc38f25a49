"""What a law is fitted to: one row a run, in columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from analysis.laws import Array
from analysis.records import RecordSet
from analysis.results import Exclusion

SizeVariable = Literal[
    "flops_per_token", "active_params", "active_non_embedding_params", "total_params"
]
"""What N stands for. flops_per_token is M by the house convention, so C = M·D exactly."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Runs as columns of equal length."""

    size_variable: str
    """Name of what ``size`` counts: a SizeVariable, or a table's column."""
    label: tuple[str, ...]
    """Run id, or ``row 17`` of a table (the first row below the header is row 2)."""
    size: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    """Nats per token."""
    flops: tuple[float, ...]
    """Training FLOPs."""
    cell: tuple[str, ...]
    """Runs of one cell differ in their seed alone."""
    budget: tuple[str, ...]
    """Runs of one budget share their compute (tables) or their token budget's rank (sweeps)."""
    extra: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Further numeric columns, e.g. num_experts, granularity."""

    def __len__(self) -> int:
        return len(self.label)

    def array(self, name: str) -> Array:
        """One column as a numpy array."""
        values = self.extra[name] if name in self.extra else getattr(self, name)
        return np.asarray(values, dtype=float)


def points_from_records(records: RecordSet, size: SizeVariable = "flops_per_token") -> Points:
    """The done runs of ``records`` as points."""
    raise NotImplementedError


def points_from_table(
    path: Path, columns: Mapping[str, str]
) -> tuple[Points, tuple[Exclusion, ...]]:
    """The rows of a CSV, JSONL or Parquet table as points."""
    raise NotImplementedError
