"""What a law is fitted to: one row a run, in columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np

from analysis.budgets import budget_ranks
from analysis.exclusion import Exclusion
from analysis.laws import Array
from analysis.records import RecordSet
from model.errors import ConfigError

SizeVariable = Literal[
    "flops_per_token",
    "active_params",
    "active_params_with_attention",
    "active_non_embedding_params",
    "total_params",
    "total_params_with_attention",
]
"""What N stands for. flops_per_token is M by the house convention, so C = M·D exactly: six times
the active parameters without the embedding, and attention. ``..._with_attention`` adds attention to
another count, as the parameters that would cost as much."""

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


FLOPS_PER_PARAM_TOKEN = 6.0
"""C = 6·N·D, where a table gives only two of the three (Kaplan et al., arXiv:2001.08361)."""
MEASURES = {"size": "columns.params", "tokens": "columns.tokens", "flops": "columns.flops"}
"""The columns of every kind of table, and the option that names each."""
OWN_COLUMNS = (*MEASURES, "loss", "budget")

NOT_FITTED = {
    "promoted": "promoted: it judges the fit and does not enter it",
    "trunk": "trunk: at a constant rate; what was read out of it enters the fit",
}
"""Roles whose runs are no evidence, and why."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Runs as columns of equal length; a table of one variable leaves the other columns empty."""

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
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Further columns of a few words, e.g. the dataset."""

    def __len__(self) -> int:
        return len(self.label)

    def array(self, name: str) -> Array:
        """One column as a numpy array; a further one of the same name never stands for it."""
        values = getattr(self, name) if name in OWN_COLUMNS else self.extra[name]
        return np.asarray(values, dtype=float)

    def column(self, name: str, law: str) -> Array:
        """The variable ``name``; ConfigError says what ``law`` (as messages call it) lacks."""
        if name == "tokens_per_size":
            return self.column("tokens", law) / self.column("size", law)
        if getattr(self, name) if name in MEASURES else name in self.extra:
            return self.array(name)
        option = MEASURES.get(name, f"variables.{name}")
        raise ConfigError(
            f"{law} needs {name}, which the points lack. Name the table's column that holds it: "
            f"{option}=COLUMN"
        )


def make_points(
    *,
    size_variable: str,
    label: Sequence[str],
    size: Array | None = None,
    tokens: Array | None = None,
    loss: Array,
    flops: Array | None = None,
    extra: dict[str, tuple[float, ...]] | None = None,
    words: dict[str, tuple[str, ...]] | None = None,
    setting: Sequence[Array] = (),
) -> Points:
    """Points from checked columns.

    A cell is one size and token count (and one value of each further ``setting``), so its runs
    differ in their seed alone. Budgets come from the compute; without it from the size, or the
    tokens.
    """
    given = [column for column in (size, tokens) if column is not None]
    cell_columns = [*(given or ([] if flops is None else [flops])), *setting]
    along = next((c for c in (flops, size, tokens, *setting) if c is not None), None)
    if along is None:
        raise ConfigError("points need a size, tokens, training FLOPs or another variable")
    return Points(
        size_variable=size_variable,
        label=tuple(label),
        size=_floats(size),
        tokens=_floats(tokens),
        loss=_floats(loss),
        flops=_floats(flops),
        cell=tuple("x".join(f"{x:.10g}" for x in row) for row in zip(*cell_columns, strict=True)),
        budget=budget_ranks(along),
        extra=extra or {},
        words=words or {},
    )


def row_name(name: str, row: int) -> str:
    """How a table's row is called, where a column names the runs."""
    return f"{name} (row {row})"


def bare_name(label: str) -> str:
    """The name that :func:`row_name` was given; any other label as it is."""
    return re.sub(r" \(row \d+\)$", "", label)


def celled_by(points: Points, variables: Sequence[str]) -> Points:
    """The cells parted by a law's further variables: runs that differ in one are no repeats."""
    columns = [points.extra[name] for name in variables if name in points.extra]
    if not columns:
        return points
    cells = (
        "x".join([cell, *(f"{x:.10g}" for x in row)])
        for cell, *row in zip(points.cell, *columns, strict=True)
    )
    return replace(points, cell=tuple(cells))


def take(points: Points, rows: Sequence[int]) -> Points:
    """Some of the points, in the order of ``rows``."""
    columns = {
        field.name: tuple(column[row] for row in rows if column)
        for field in fields(points)
        if field.name not in ("size_variable", "extra", "words")
        for column in (getattr(points, field.name),)
    }
    extra = {name: tuple(column[row] for row in rows) for name, column in points.extra.items()}
    words = {name: tuple(column[row] for row in rows) for name, column in points.words.items()}
    return Points(size_variable=points.size_variable, extra=extra, words=words, **columns)


def mean_of_cells(points: Points) -> tuple[Points, tuple[Exclusion, ...]]:
    """Each cell as one point, the mean of its losses; the runs that went into another's place.

    Published fits often take means over seeds. The noise they hide is lost to the fit.
    """
    rows: dict[str, list[int]] = {}
    for row, cell in enumerate(points.cell):
        rows.setdefault(cell, []).append(row)
    first = [of_cell[0] for of_cell in rows.values()]
    loss = points.array("loss")
    mean = tuple(float(loss[of_cell].mean()) for of_cell in rows.values())
    merged = tuple(
        Exclusion(label=points.label[row], reason="counted in the mean of its cell")
        for of_cell in rows.values()
        for row in of_cell[1:]
    )
    return replace(take(points, first), loss=mean), merged


def lowest_of_cells(points: Points) -> tuple[Points, tuple[Exclusion, ...]]:
    """Each cell as the run of its lowest loss, as of a sweep of learning rates; the other runs."""
    lowest: dict[str, int] = {}
    for row, cell in enumerate(points.cell):
        if cell not in lowest or points.loss[row] < points.loss[lowest[cell]]:
            lowest[cell] = row
    kept = sorted(lowest.values())
    beaten = tuple(
        Exclusion(
            label=points.label[row],
            reason="not the lowest loss of its size and token count (lowest_of_cells)",
        )
        for row in sorted(set(range(len(points))) - set(kept))
    )
    return take(points, kept), beaten


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
    return _parted([record.protocol_fingerprint[:8] for record in kept], points), excluded


def _parted(protocol: Sequence[str], points: Points) -> Points:
    """Runs of two protocols, where they are let in together, are no repeats of each other."""
    if len(set(protocol)) == 1:
        return points
    cells = (f"{cell} {name}" for cell, name in zip(points.cell, protocol, strict=True))
    return replace(points, cell=tuple(cells), words={"protocol": tuple(protocol)})


def _floats(column: Array | None) -> tuple[float, ...]:
    return () if column is None else tuple(np.asarray(column, dtype=float).tolist())
