"""What a caller says of a table: which column is what, which rows count, in which units."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from analysis.table_cells import Decimal, Thousands
from model.config import require


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what: `loss`, and what the law needs of the others."""

    params: str | None = None
    """Model size: a parameter count, or what params_are says. Without it flops / (6·tokens)."""
    params_are: Literal["params", "flops_per_token"] = "params"
    tokens: str | None = None
    """Training tokens; without it flops / (6·params)."""
    loss: str | None = None
    """Nats per token."""
    flops: str | None = None
    """Training FLOPs; without it 6·params·tokens."""
    seed: str | None = None
    """Rows equal in size, tokens and seed are one run given twice."""
    label: str | None = None
    """Names the runs; without it their rows do."""
    variables: dict[str, str] = field(default_factory=dict)
    """Further variables of a law and their columns, e.g. {granularity: G}."""


@dataclass(frozen=True, kw_only=True)
class TableRules:
    """Which rows are used, and in which units."""

    bad_rows: Literal["refuse", "drop"] = "refuse"
    """Rows that are no measurement (empty, not positive, given twice): refuse the table, or drop
    them, each counted."""
    filter: dict[str, Any] = field(default_factory=dict)
    """Keep the rows whose column equals the value (or one of a list)."""
    exclude: dict[str, Any] = field(default_factory=dict)
    """Leave out the rows whose column equals the value (or one of a list)."""
    test: dict[str, Any] = field(default_factory=dict)
    """Rows that are forecast instead of fitted, chosen like `filter`, whatever that says."""
    last_of: str | None = None
    """A column that names runs: of each only the last row counts, where a table holds its curve."""
    last_by: str | None = None
    """The column that says which row is the last, e.g. the step; without it the file's order."""
    mean_over_seeds: bool = False
    """Rows of one cell (size, tokens, variables) count as one point, the mean of their losses."""
    lowest_of_cells: bool = False
    """Of the rows of one cell only the one of lowest loss counts, where they are a sweep of
    learning rates; of seeds it would pick the luckiest."""
    drop_highest_losses: int = 0
    """An outlier rule: leave out this many of the highest losses."""
    params_unit: float = 1.0
    """Parameters that 1 in the column stands for, e.g. 1e6 for a column in millions."""
    tokens_unit: float = 1.0
    flops_unit: float = 1.0
    loss_unit: Literal["nats", "bits"] | float = 1.0
    """Per token: nats, bits, or the nats that 1 in the column stands for."""
    loss_is: Literal["loss", "perplexity"] = "loss"
    """What the column of losses holds; the loss is a perplexity's logarithm."""
    variables_unit: dict[str, float] = field(default_factory=dict)
    """The same of a law's further variables, e.g. {unique_tokens: 1e9}."""
    decimal: Decimal = "."
    """What stands before decimals."""
    thousands: Thousands = ""
    """What stands between thousands."""
    check_units: bool = True
    """Refuse columns that look like two units, or like millions for ones."""

    def __post_init__(self) -> None:
        require(
            self.drop_highest_losses >= 0,
            f"drop_highest_losses must be >= 0, got {self.drop_highest_losses}",
        )
        named = (self.params_unit, self.tokens_unit, self.flops_unit, self.nats_in_loss_unit)
        units = (*named, *self.variables_unit.values())
        require(
            min(units) > 0,
            f"units must be positive, got {', '.join(f'{unit:g}' for unit in units)}",
        )
        require(
            self.decimal != self.thousands,
            f"decimal and thousands are both {self.decimal!r}; a number can't be read so",
        )
        require(
            not (self.mean_over_seeds and self.lowest_of_cells),
            "mean_over_seeds and lowest_of_cells: one or the other",
        )
        require(
            self.last_by is None or self.last_of is not None,
            f"last_by={self.last_by} needs last_of, the column that names the runs",
        )

    @property
    def nats_in_loss_unit(self) -> float:
        """What the column's losses are multiplied by: a bit is ln 2 nats."""
        if isinstance(self.loss_unit, str):
            return {"nats": 1.0, "bits": math.log(2)}[self.loss_unit]
        return self.loss_unit
