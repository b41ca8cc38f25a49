"""Any table of runs as points, its columns named by the caller.

Every cell that is used is checked; what is wrong is named with its rows (counted as a spreadsheet
does: the header is row 1) and how often it occurs. Nothing is dropped unless the caller asks, and
then each row is kept as an exclusion with its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.exclusion import Exclusion
from analysis.laws import Array
from analysis.mixed import MOST_WORDS, check_repeats
from analysis.points import (
    FLOPS_PER_PARAM_TOKEN,
    OWN_COLUMNS,
    Points,
    lowest_of_cells,
    make_points,
    mean_of_cells,
    row_name,
)
from analysis.table_cells import as_numbers, as_written, is_empty
from analysis.table_files import read_table
from analysis.table_names import check_named, find_column
from analysis.table_options import Columns, TableRules
from analysis.units import check_units, check_variables
from model.errors import ConfigError

MOST_SHOWN = 3
ROUND_DIGITS = 4
"""Equal losses with more decimals than this are one run given twice, not two rounded ones."""

Rows = NDArray[np.bool_]

PERPLEXITY = ("ppl", "perplex")
"""How columns of them are called."""

BITS = re.compile(r"(?<![a-z])bits?(?![a-z])", re.IGNORECASE)
"""How columns of losses in bits are called: L_bits, loss (bits)."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A table's rows by what becomes of them."""

    points: Points
    excluded: tuple[Exclusion, ...]
    test: Points | None
    """Rows to be forecast; None where nobody asked."""


def points_from_table(
    path: Path, columns: Columns, rules: TableRules | None = None
) -> tuple[Points, tuple[Exclusion, ...]]:
    """The rows of a table as points, and the rows left out with their reasons.

    Raises:
        ConfigError: no such file or column, or rows that are no measurements.
    """
    loaded = load_table(path, columns, rules)
    return loaded.points, loaded.excluded


def load_table(path: Path, columns: Columns, rules: TableRules | None = None) -> Loaded:
    """The rows to be fitted, those to be forecast, and those left out with their reasons.

    Raises:
        ConfigError: no such file or column, or rows that are no measurements.
    """
    rules = rules or TableRules()
    frame = read_table(path)
    check_named(path, frame, columns)
    table = _Table(path, frame, rules)
    table.choose()
    measures, pair = _measures(table, columns)
    loss = table.losses(columns)
    for name in rules.variables_unit:
        if name not in columns.variables:
            raise ConfigError(
                f"table.variables_unit.{name}: no such variable; name its column with "
                f"variables.{name}=COLUMN"
            )
    variables = {
        name: table.numbers(
            name, column, unit=rules.variables_unit.get(name, 1.0), group="variables"
        )
        for name, column in columns.variables.items()
    }
    table.refuse_or_drop(
        "the same run given twice",
        table.repeated(columns, [*measures.values(), *variables.values(), loss]),
    )
    table.drop_highest(loss, rules.drop_highest_losses)
    labels = table.labels(columns)

    def made(at: NDArray[np.intp]) -> Points:
        given = {name: column[at] for name, column in measures.items()}
        return make_points(
            size_variable=columns.params or "size",
            label=[labels[i] for i in at],
            loss=loss[at],
            extra=table.extra(at) | {name: _tuple(v[at]) for name, v in variables.items()},
            words=table.words(at, columns),
            setting=[v[at] for v in variables.values()],
            **given,
        )

    kept, test = table.fitted(), np.flatnonzero(table.is_test)
    if len(kept) == 0:
        raise ConfigError(f"{path}: no row is left of {len(frame)}")
    points = made(kept)
    forecast = made(test) if rules.test else None
    merged: tuple[Exclusion, ...] = ()
    if rules.check_units:
        check_units(
            points,
            table.rows[kept],
            str(path),
            params_are=columns.params_are,
            pair=pair,
            derived=_derived(columns),
        )
        check_variables(points, tuple(columns.variables), table.rows[kept], str(path))
        check_repeats(points, str(path))
    if rules.mean_over_seeds:
        points, merged = mean_of_cells(points)
    if rules.lowest_of_cells:
        points, merged = lowest_of_cells(points)
        forecast = None if forecast is None else lowest_of_cells(forecast)[0]
    excluded = tuple(
        Exclusion(label=labels[at], reason=reason) for at, reason in sorted(table.dropped.items())
    )
    return Loaded(points=points, excluded=(*excluded, *merged), test=forecast)


def _measures(table: _Table, columns: Columns) -> tuple[dict[str, Array], float]:
    """Size, tokens and FLOPs as far as the table gives them, and C over N·D."""
    pair = 1.0 if columns.params_are == "flops_per_token" else FLOPS_PER_PARAM_TOKEN
    names = {"size": "params", "tokens": "tokens", "flops": "flops"}
    found = {
        name: table.numbers(role, getattr(columns, role), unit=getattr(table.rules, f"{role}_unit"))
        for name, role in names.items()
        if getattr(columns, role) is not None
    }
    if len(found) == 2:
        if "flops" not in found:
            found["flops"] = pair * found["size"] * found["tokens"]
        elif "tokens" not in found:
            found["tokens"] = found["flops"] / (pair * found["size"])
        else:
            found["size"] = found["flops"] / (pair * found["tokens"])
    return found, pair


def _derived(columns: Columns) -> str | None:
    """Which of size, tokens and FLOPs follows from the two that are given."""
    absent = [name for name in ("params", "tokens", "flops") if getattr(columns, name) is None]
    return absent[0] if len(absent) == 1 else None


class _Table:
    """The rows of one file, by position; those dropped so far with their reasons."""

    def __init__(self, path: Path, frame: pd.DataFrame, rules: TableRules) -> None:
        self.path, self.frame, self.rules = path, frame, rules
        self.rows = frame.index.to_numpy()
        """Each row's number in the file."""
        self.dropped: dict[int, str] = {}
        self.is_test: Rows = np.zeros(len(frame), dtype=bool)

    def choose(self) -> None:
        """Drop what the caller did not ask for: other rows than a run's last, the filter's rest."""
        last = self._last() if self.rules.last_of else np.ones(len(self.frame), dtype=bool)
        if self.rules.test:
            self.is_test = last.copy()
            for name, value in self.rules.test.items():
                self.is_test &= self._matches("test", name, value)
            if not self.is_test.any():
                raise ConfigError(f"test={self.rules.test}: no row of {self.path} has all of it")
            for at in np.flatnonzero(self.is_test):
                self.dropped[int(at)] = "test: forecast, not fitted"
        for at in np.flatnonzero(~last):
            self.dropped.setdefault(int(at), f"not the last row of its {self.rules.last_of}")
        for name, value in self.rules.filter.items():
            for at in np.flatnonzero(~self._matches("filter", name, value)):
                self.dropped.setdefault(int(at), f"filter: {name} is not {value}")
        for name, value in self.rules.exclude.items():
            for at in np.flatnonzero(self._matches("exclude", name, value)):
                self.dropped.setdefault(int(at), f"exclude: {name} is {self.frame[name].iloc[at]}")

    def fitted(self) -> NDArray[np.intp]:
        """Positions of the rows that are left."""
        return np.array([at for at in range(len(self.frame)) if at not in self.dropped], dtype=int)

    def numbers(
        self, role: str, name: str | None, *, unit: float = 1.0, group: str = "columns"
    ) -> Array:
        """One column as positive numbers; rows that are none are refused or dropped."""
        assert name is not None
        column = self._column(f"{group}.{role}", name)
        values = as_numbers(column, self.rules.decimal, self.rules.thousands) * unit
        text = column.astype(str)
        cells = [f"{cell!r}" for cell in text]
        empty = is_empty(column)
        what = f"{name!r} ({group}.{role})"
        self.refuse_or_drop(f"{what} is empty or NaN", empty)
        wrong = np.isnan(values) & ~empty
        used = wrong & np.array([self._used(at) for at in range(len(wrong))])
        self.refuse_or_drop(f"{what} is not a number{as_written(text[used])}", wrong, cells)
        self.refuse_or_drop(f"{what} is infinite", np.isinf(values), cells)
        relative = role == "loss" and (values <= 0).mean() > 0.5
        other = " (relative to another loss? The law is of the loss itself)" if relative else ""
        self.refuse_or_drop(f"{what} is not positive{other}", values <= 0, cells)
        return values

    def losses(self, columns: Columns) -> Array:
        """The losses, in nats per token, of whatever their column holds."""
        name = str(columns.loss)
        says_so = any(word in name.lower() for word in PERPLEXITY)
        if self.rules.loss_is == "loss":
            if says_so and self.rules.check_units:
                raise ConfigError(
                    f"columns.loss: {name!r} of {self.path} seems to hold perplexities; say "
                    "table.loss_is=perplexity, and their logarithms are taken, or if it holds "
                    "losses table.check_units=false"
                )
            if BITS.search(name) and self.rules.loss_unit == 1.0 and self.rules.check_units:
                raise ConfigError(
                    f"columns.loss: {name!r} of {self.path} seems to hold bits; say "
                    "table.loss_unit=bits for bits per token, or if they are nats "
                    "table.loss_unit=nats"
                )
            return self.numbers("loss", name, unit=self.rules.nats_in_loss_unit)
        values = self.numbers("loss", name)
        cells = [f"{cell!r}" for cell in self.frame[name].astype(str)]
        self.refuse_or_drop(
            f"{name!r} (columns.loss) is no perplexity, which is above 1", values <= 1, cells
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log(values) * self.rules.nats_in_loss_unit)

    def repeated(self, columns: Columns, key: list[Array]) -> Rows:
        """Later rows of a run that is already there; the loss is the last of ``key``."""
        numbers = {f"__{index}": column for index, column in enumerate(key)}
        frame = self.frame.astype(str).reset_index(drop=True).assign(**numbers)
        frame = frame[[at not in self.dropped for at in frame.index]]
        same = frame.duplicated()
        loss = frame[list(numbers)[-1]]
        fine = np.abs(loss - loss.round(ROUND_DIGITS)) > 1e-12
        if columns.seed is None:
            same |= frame.duplicated(list(numbers)) & fine
        else:
            self._column("columns.seed", columns.seed)
            others = list(columns.variables.values())
            same |= frame.duplicated([*list(numbers)[:-1], *others, columns.seed])
        found = np.zeros(len(self.frame), dtype=bool)
        found[frame.index[same].to_numpy()] = True
        return found

    def drop_highest(self, loss: Array, count: int) -> None:
        """The outlier rule."""
        kept = sorted(self.fitted().tolist(), key=lambda at: -loss[at])
        for at in kept[:count]:
            self.dropped[at] = f"among the {count} highest losses (drop_highest_losses)"

    def labels(self, columns: Columns) -> list[str]:
        """The name of every row."""
        if columns.label is None:
            return [f"row {row}" for row in self.rows]
        names = self._column("columns.label", columns.label).astype(str)
        return [row_name(name, row) for name, row in zip(names, self.rows, strict=True)]

    def extra(self, at: NDArray[np.intp]) -> dict[str, tuple[float, ...]]:
        """Every further column that is all numbers, for laws in other variables."""
        found = {}
        for index, name in enumerate(self.frame.columns):
            if name in OWN_COLUMNS:
                continue
            column = self.frame.iloc[:, index]
            values = as_numbers(column, self.rules.decimal, self.rules.thousands)[at]
            if np.isfinite(values).all():
                found[str(name)] = _tuple(values)
        return found

    def words(self, at: NDArray[np.intp], columns: Columns) -> dict[str, tuple[str, ...]]:
        """Every further column of a few words, each in several rows: kinds of run."""
        named = {columns.label, columns.seed, *columns.variables.values(), self.rules.last_of}
        found = {}
        for index, name in enumerate(self.frame.columns):
            column = self.frame.iloc[:, index].iloc[at]
            if name in named or not np.isnan(as_numbers(column, ".", "")).all():
                continue
            text = column.astype(str).str.strip()
            if 1 < text.nunique() <= min(MOST_WORDS, len(text) // 2):
                found[str(name)] = tuple(text)
        return found

    def refuse_or_drop(self, what: str, bad: Rows, cells: list[str] | None = None) -> None:
        """One kind of bad row: an error that names them, or exclusions."""
        found = [int(at) for at in np.flatnonzero(bad) if self._used(int(at))]
        if not found:
            return
        if self.rules.bad_rows == "drop":
            self.dropped.update(dict.fromkeys(found, what))
            self.is_test[found] = False
            return
        shown = [
            f"row {self.rows[at]}" + (f" ({cells[at]})" if cells else "")
            for at in found[:MOST_SHOWN]
        ]
        more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        others = any(self._used(at) and not bad[at] for at in range(len(bad)))
        advice = "Correct them, or leave them out with table.bad_rows=drop"
        raise ConfigError(
            f"{self.path}: {what} in {len(found)} of {len(self.frame)} rows: {', '.join(shown)}"
            f"{more}. {advice if others else 'No row would be left: name another column'}"
        )

    def _used(self, at: int) -> bool:
        return at not in self.dropped or bool(self.is_test[at])

    def _last(self) -> Rows:
        """The last row of each run."""
        name = str(self.rules.last_of)
        runs = self._column("table.last_of", name).astype(str).to_numpy()
        order = np.arange(len(runs), dtype=float)
        if self.rules.last_by is not None:
            column = self._column("table.last_by", self.rules.last_by)
            order = as_numbers(column, self.rules.decimal, self.rules.thousands)
            bad = np.flatnonzero(np.isnan(order))
            if len(bad):
                raise ConfigError(
                    f"{self.path}: {self.rules.last_by!r} (table.last_by) is no number in "
                    f"{len(bad)} of {len(runs)} rows: row {self.rows[bad[0]]}"
                )
        last: dict[str, int] = {}
        for at in np.argsort(order, kind="stable"):
            last[runs[at]] = int(at)
        found = np.zeros(len(runs), dtype=bool)
        found[list(last.values())] = True
        return found

    def _matches(self, option: str, name: str, value: Any) -> Rows:
        column = self._column(f"{option}.{name}", name)
        options = value if isinstance(value, list | tuple) else [value]
        numeric = as_numbers(column, self.rules.decimal, self.rules.thousands)
        text = column.astype(str).str.strip()
        matches = np.zeros(len(column), dtype=bool)
        for wanted in options:
            if isinstance(wanted, bool):
                matches |= (text.str.lower() == str(wanted).lower()).to_numpy()
            elif isinstance(wanted, int | float):
                matches |= numeric == float(wanted)
            else:
                matches |= (text == str(wanted)).to_numpy()
        if not matches.any():
            seen = ", ".join(map(str, column.drop_duplicates().head(8)))
            raise ConfigError(
                f"{option}.{name}={value}: no row of {self.path} has it; it has: {seen}"
            )
        return matches

    def _column(self, option: str, name: str) -> pd.Series[Any]:
        find_column(self.path, self.frame, option, name)
        return self.frame[name]


def _tuple(column: Array) -> tuple[float, ...]:
    return tuple(column.tolist())
