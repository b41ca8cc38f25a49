"""Any table of runs: CSV, TSV, JSONL or Parquet, its columns named by the caller.

Every cell that is used is checked; what is wrong is named with its rows (counted as a spreadsheet
does: the header is row 1) and how often it occurs. Nothing is dropped unless the caller asks, and
then each row is kept as an exclusion with its reason.
"""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.points import Points, make_points
from analysis.results import Exclusion
from analysis.units import check_units
from model.config import require
from model.errors import ConfigError

FLOPS_PER_PARAM_TOKEN = 6.0
"""C = 6·N·D, where a table gives only two of the three (Kaplan et al., arXiv:2001.08361)."""
MOST_SHOWN = 3
ROUND_DIGITS = 4
"""Equal losses with more decimals than this are one run given twice, not two rounded ones."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what. `params` and `loss` are needed, and one of `tokens` and `flops`."""

    params: str | None = None
    """Model size: a parameter count, or what params_are says."""
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
    drop_highest_losses: int = 0
    """An outlier rule: leave out this many of the highest losses."""
    params_unit: float = 1.0
    """Parameters that 1 in the column stands for, e.g. 1e6 for a column in millions."""
    tokens_unit: float = 1.0
    check_units: bool = True
    """Refuse columns that look like two units, or like millions for ones."""

    def __post_init__(self) -> None:
        require(
            self.drop_highest_losses >= 0,
            f"drop_highest_losses must be >= 0, got {self.drop_highest_losses}",
        )
        require(
            self.params_unit > 0 and self.tokens_unit > 0,
            f"units must be positive, got {self.params_unit} and {self.tokens_unit}",
        )


def points_from_table(
    path: Path, columns: Columns, rules: TableRules | None = None
) -> tuple[Points, tuple[Exclusion, ...]]:
    """The rows of a table as points, and the rows left out with their reasons.

    Raises:
        ConfigError: no such file or column, or rows that are no measurements.
    """
    rules = rules or TableRules()
    frame = read_table(path)
    _check_named(path, frame, columns)
    table = _Table(path, frame, rules)
    table.filter(rules.filter)
    size = table.numbers("params", columns.params) * rules.params_unit
    loss = table.numbers("loss", columns.loss)
    pair = size * (1.0 if columns.params_are == "flops_per_token" else FLOPS_PER_PARAM_TOKEN)
    flops = table.numbers("flops", columns.flops) if columns.flops else None
    if columns.tokens:
        tokens = table.numbers("tokens", columns.tokens) * rules.tokens_unit
        flops = pair * tokens if flops is None else flops
    else:
        assert flops is not None  # _check_named asks for one of the two
        tokens = flops / pair
    variables = {
        name: table.numbers(name, column, "variables") for name, column in columns.variables.items()
    }
    table.refuse_or_drop("the same run given twice", table.repeated(columns, size, tokens, loss))
    table.drop_highest(loss, rules.drop_highest_losses)

    kept = np.array([row for row in frame.index if row not in table.dropped], dtype=np.intp)
    if len(kept) == 0:
        raise ConfigError(f"{path}: no row is left of {len(frame)}")
    at = kept - table.first
    labels = table.labels(columns)
    points = make_points(
        size_variable=cast(str, columns.params),
        label=[labels[i] for i in at],
        size=size[at],
        tokens=tokens[at],
        loss=loss[at],
        flops=flops[at],
        extra=table.extra(at) | {name: _tuple(v[at]) for name, v in variables.items()},
    )
    if rules.check_units:
        check_units(points, kept, str(path), params_are=columns.params_are)
    excluded = tuple(
        Exclusion(label=labels[row - table.first], reason=reason)
        for row, reason in sorted(table.dropped.items())
    )
    return points, excluded


def read_table(path: Path) -> pd.DataFrame:
    """The table as it stands, text cells as text; its index counts rows as a spreadsheet does."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith((".jsonl", ".ndjson")):
            frame = pd.DataFrame(_json_lines(path))
        elif name.endswith(".parquet"):
            frame = pd.read_parquet(path)
        elif name.endswith((".csv", ".tsv", ".txt")):
            frame = pd.read_csv(
                path,
                sep=_separator(path),
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
            )
        else:
            raise ConfigError(f"{path}: not .csv, .tsv, .jsonl or .parquet (.gz may follow)")
    except ImportError:
        raise ConfigError(
            f"{path}: reading Parquet needs pyarrow (pip install pyarrow); or save it as CSV"
        ) from None
    except ConfigError:
        raise
    except (ValueError, UnicodeDecodeError, OSError) as error:  # pandas' parser errors are values
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: can't be read as a table: {reason}") from None
    if frame.empty:
        raise ConfigError(f"{path}: a table without rows")
    frame.columns = [str(column).strip() for column in frame.columns]
    # A text table's header is row 1, so its first run stands in row 2; other kinds have no header.
    first = 2 if name.endswith((".csv", ".tsv", ".txt")) else 1
    frame.index = pd.RangeIndex(first, first + len(frame))
    return frame


class _Table:
    """The rows of one file, and those dropped so far with their reasons."""

    def __init__(self, path: Path, frame: pd.DataFrame, rules: TableRules) -> None:
        self.path, self.frame, self.rules = path, frame, rules
        self.first = int(frame.index[0])
        self.dropped: dict[int, str] = {}

    def filter(self, wanted: dict[str, Any]) -> None:
        """Drop the rows that the caller did not ask for."""
        for name, value in wanted.items():
            column = self._column(f"filter.{name}", name)
            options = value if isinstance(value, list | tuple) else [value]
            matches = np.zeros(len(column), dtype=bool)
            numeric = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
            for option in options:
                if isinstance(option, int | float) and not isinstance(option, bool):
                    matches |= numeric == float(option)
                else:
                    matches |= (column.astype(str) == str(option)).to_numpy()
            if not matches.any():
                seen = ", ".join(map(str, column.drop_duplicates().head(8)))
                raise ConfigError(
                    f"filter.{name}={value}: no row of {self.path} has it; it has: {seen}"
                )
            for row in np.flatnonzero(~matches):
                self.dropped.setdefault(int(row) + self.first, f"filter: {name} is not {value}")

    def numbers(self, role: str, name: str | None, group: str = "columns") -> Array:
        """One column as positive numbers; rows that are none are refused or dropped."""
        column = self._column(f"{group}.{role}", cast(str, name))
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
        text = column.astype(str)
        cells = [f"{cell!r}" for cell in text]
        empty = text.str.strip().isin(["", "nan", "NaN", "None", "NA", "null"]).to_numpy()
        what = f"{name!r} ({group}.{role})"
        self.refuse_or_drop(f"{what} is empty or NaN", empty)
        wrong = np.isnan(values) & ~empty
        self.refuse_or_drop(f"{what} is not a number{_written(text[wrong])}", wrong, cells)
        self.refuse_or_drop(f"{what} is infinite", np.isinf(values), cells)
        self.refuse_or_drop(f"{what} is not positive", values <= 0, cells)
        return values

    def repeated(self, columns: Columns, size: Array, tokens: Array, loss: Array) -> Rows:
        """Later rows of a run that is already there."""
        frame = self.frame.astype(str).assign(__size=size, __tokens=tokens, __loss=loss)
        used = pd.Series([row not in self.dropped for row in frame.index], index=frame.index)
        frame = frame[used]
        same = frame.duplicated()
        key = ["__size", "__tokens", "__loss"]
        fine = np.abs(frame["__loss"] - frame["__loss"].round(ROUND_DIGITS)) > 1e-12
        if columns.seed is None:
            same |= frame.duplicated(key) & fine
        else:
            self._column("columns.seed", columns.seed)
            same |= frame.duplicated([*key[:2], columns.seed])
        found = np.zeros(len(self.frame), dtype=bool)
        found[frame.index[same].to_numpy() - self.first] = True
        return found

    def drop_highest(self, loss: Array, count: int) -> None:
        """The outlier rule."""
        kept = [row for row in self.frame.index if row not in self.dropped]
        kept.sort(key=lambda row: -loss[row - self.first])
        for row in kept[:count]:
            self.dropped[row] = f"among the {count} highest losses (drop_highest_losses)"

    def labels(self, columns: Columns) -> list[str]:
        """The name of every row."""
        rows = [f"row {row}" for row in self.frame.index]
        if columns.label is None:
            return rows
        names = self._column("columns.label", columns.label).astype(str)
        return [f"{name} ({row})" for name, row in zip(names, rows, strict=True)]

    def extra(self, at: NDArray[np.intp]) -> dict[str, tuple[float, ...]]:
        """Every further column that is all numbers, for laws in other variables."""
        found = {}
        for name in self.frame.columns:
            values = pd.to_numeric(self.frame[name], errors="coerce").to_numpy(dtype=float)[at]
            if np.isfinite(values).all():
                found[str(name)] = _tuple(values)
        return found

    def refuse_or_drop(self, what: str, bad: Rows, cells: list[str] | None = None) -> None:
        """One kind of bad row: an error that names them, or exclusions."""
        rows = [int(i) + self.first for i in np.flatnonzero(bad)]
        rows = [row for row in rows if row not in self.dropped]
        if not rows:
            return
        if self.rules.bad_rows == "drop":
            self.dropped.update(dict.fromkeys(rows, what))
            return
        shown = [
            f"row {row}" + (f" ({cells[row - self.first]})" if cells else "")
            for row in rows[:MOST_SHOWN]
        ]
        more = f" and {len(rows) - MOST_SHOWN} more" if len(rows) > MOST_SHOWN else ""
        raise ConfigError(
            f"{self.path}: {what} in {len(rows)} of {len(self.frame)} rows: {', '.join(shown)}"
            f"{more}. Correct them, or leave them out with table.bad_rows=drop"
        )

    def _column(self, option: str, name: str) -> pd.Series[Any]:
        _find_column(self.path, self.frame, option, name)
        return self.frame[name]


Rows = NDArray[np.bool_]

WRITTEN = {
    r"-?\d+,\d+": "written with a decimal comma: use a point",
    r"\d{1,3}(,\d{3})+(\.\d*)?": "written with commas: none between thousands, decimals by a point",
    r"[\d.]+ ?[kKmMbBgGtT]": "written with a suffix: use 1e6 for M, 1e9 for B",
    r"[\d.]+ ?%": "written in percent: use shares",
}
"""How numbers for people look, and what to do about each."""


def _written(cells: pd.Series[Any]) -> str:
    """What all of these cells have in common, in brackets; the longer pattern first."""
    for pattern in sorted(WRITTEN, key=len, reverse=True):
        if len(cells) and cells.str.strip().str.fullmatch(pattern).all():
            return f" ({WRITTEN[pattern]})"
    return ""


def _tuple(column: Array) -> tuple[float, ...]:
    return tuple(column.tolist())


def _check_named(path: Path, frame: pd.DataFrame, columns: Columns) -> None:
    given = f"{path} has: {', '.join(frame.columns)}"
    for role in ("params", "loss"):
        if getattr(columns, role) is None:
            raise ConfigError(f"columns.{role}: missing; name the column. {given}")
    if columns.tokens is None and columns.flops is None:
        raise ConfigError(
            f"columns.tokens: missing; name the column of the tokens, or of the training FLOPs "
            f"with columns.flops. {given}"
        )
    for role in ("params", "tokens", "loss", "flops", "seed", "label"):
        if getattr(columns, role) is not None:
            _find_column(path, frame, f"columns.{role}", getattr(columns, role))


def _find_column(path: Path, frame: pd.DataFrame, option: str, name: str) -> None:
    names = list(frame.columns)
    count = names.count(name)
    if count == 0:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"{option}: no column {name!r} in {path}{hint} It has: {_listed(names)}")
    if count > 1:
        raise ConfigError(f"{option}: {count} columns of {path} are called {name!r}")


def _listed(names: Iterable[str], most: int = 40) -> str:
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with _opened(path) as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    rows = []
    for number, line in lines:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: line {number} is not a mapping")
        rows.append(row)
    return rows


def _opened(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig"))


def _separator(path: Path) -> str:
    """Of tab, semicolon and comma the one that the header holds most often."""
    with _opened(path) as file:
        header = file.readline()
    return max(",;\t", key=header.count)
