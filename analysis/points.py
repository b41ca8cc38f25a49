"""What a law is fitted to: one row a run, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np

from analysis.budgets import budget_ranks
from analysis.laws import Array
from analysis.records import RecordSet
from analysis.results import Exclusion
from model.errors import ConfigError

SizeVariable = Literal[
    "flops_per_token", "active_params", "active_non_embedding_params", "total_params"
]
"""What N stands for. flops_per_token is M by the house convention, so C = M·D exactly."""

EXTRA_COLUMNS = (
    "num_experts",
    "experts_per_token",
    "activation_ratio",
    "granularity",
    "active_params",
    "active_non_embedding_params",
    "total_params",
    "peak_lr",
    "batch_tokens",
)
"""Of a record, kept beside the points for laws in these variables."""


NOT_FITTED = {
    "promoted": "promoted: it judges the fit and does not enter it",
    "trunk": "trunk: at a constant rate; what was read out of it enters the fit",
}
"""Roles whose runs are no evidence, and why."""


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
    budget: tuple[int, ...]
    """Rank of the run's compute budget, 0 for the smallest; see :mod:`analysis.budgets`."""
    extra: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Further numeric columns, e.g. num_experts, granularity."""

    def __len__(self) -> int:
        return len(self.label)

    def array(self, name: str) -> Array:
        """One column as a numpy array."""
        values = self.extra[name] if name in self.extra else getattr(self, name)
        return np.asarray(values, dtype=float)

    def column(self, name: str, law: str) -> Array:
        """A law's variable; ConfigError names the columns there are."""
        if name == "tokens_per_size":
            return self.array("tokens") / self.array("size")
        if name in ("size", "tokens", "flops") or name in self.extra:
            return self.array(name)
        raise ConfigError(
            f"{law} needs {name}, which the points lack. Name the table's column that holds it: "
            f"variables.{name}=COLUMN"
        )


def make_points(
    *,
    size_variable: str,
    label: Sequence[str],
    size: Array,
    tokens: Array,
    loss: Array,
    flops: Array,
    extra: dict[str, tuple[float, ...]] | None = None,
) -> Points:
    """Points from checked columns; a cell is one (size, tokens), budgets come from the compute."""
    return Points(
        size_variable=size_variable,
        label=tuple(label),
        size=_floats(size),
        tokens=_floats(tokens),
        loss=_floats(loss),
        flops=_floats(flops),
        cell=tuple(f"{n:.10g}x{d:.10g}" for n, d in zip(size, tokens, strict=True)),
        budget=budget_ranks(flops),
        extra=extra or {},
    )


def take(points: Points, rows: Sequence[int]) -> Points:
    """Some of the points, in the order of ``rows``."""
    columns = {
        field.name: tuple(getattr(points, field.name)[row] for row in rows)
        for field in fields(points)
        if field.name not in ("size_variable", "extra")
    }
    extra = {name: tuple(column[row] for row in rows) for name, column in points.extra.items()}
    return Points(size_variable=points.size_variable, extra=extra, **columns)


def points_from_records(
    records: RecordSet, size: SizeVariable = "flops_per_token"
) -> tuple[Points, tuple[Exclusion, ...]]:
    """The grid and noise runs of ``records`` as points, and what is left out with its reason.

    Raises:
        ConfigError: no run is left.
    """
    left_out = [
        Exclusion(label=record.run_id, reason=NOT_FITTED[record.role])
        for record in records.records
        if record.role in NOT_FITTED
    ]
    kept = [record for record in records.records if record.role not in NOT_FITTED]
    excluded = (*records.excluded, *left_out)
    if not kept:
        reasons = "; ".join(f"{e.label}: {e.reason}" for e in excluded[:3])
        raise ConfigError(
            f"none of {len(excluded)} runs can be fitted{': ' + reasons if reasons else ''}. Run "
            "`windtunnel sweep` first"
        )
    points = make_points(
        size_variable=size,
        label=[record.run_id for record in kept],
        size=np.array([float(getattr(record, size)) for record in kept]),
        tokens=np.array([float(record.tokens) for record in kept]),
        loss=np.array([record.heldout_nats for record in kept]),
        flops=np.array([record.train_flops for record in kept]),
        extra={
            name: tuple(float(getattr(record, name)) for record in kept) for name in EXTRA_COLUMNS
        },
    )
    return points, excluded


def _floats(column: Array) -> tuple[float, ...]:
    return tuple(np.asarray(column, dtype=float).tolist())
