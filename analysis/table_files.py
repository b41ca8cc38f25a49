"""Tables as they stand in files: CSV, TSV, Markdown, JSON, JSONL, Parquet, gzipped or not.

Text cells stay text; the frame's index counts rows as a spreadsheet does, where the header is row 1
and a blank line is a row too.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import pandas as pd

from analysis.table_cells import as_numbers
from model.errors import ConfigError

TEXT = (".csv", ".tsv", ".txt", ".md")
MOST_SHOWN = 3
MOST_CELL = 10_000_000
"""Characters of one cell; the standard library's own limit is 131,072."""


def read_table(path: Path) -> pd.DataFrame:
    """The table in ``path``.

    Raises:
        ConfigError: no such file, of no kind that is read here, broken, or without rows.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith((".jsonl", ".ndjson")):
            frame = _numbered(_flattened(_json_lines(path)))
        elif name.endswith(".json"):
            frame = _numbered(_json_table(path))
        elif name.endswith(".parquet"):
            frame = pd.read_parquet(path)
            # What was made an index before it was saved is a column of the table all the same.
            frame = frame if frame.index.names == [None] else frame.reset_index()
            frame = _numbered(frame)
        elif name.endswith(TEXT):
            frame = _text(path)
        else:
            raise ConfigError(
                f"{path}: not .csv, .tsv, .md, .json, .jsonl or .parquet (.gz may follow). Save a "
                "spreadsheet as CSV"
            )
    except ImportError:
        raise ConfigError(
            f"{path}: reading Parquet needs pyarrow (pip install pyarrow); or save it as CSV"
        ) from None
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(_not_utf8(path, error)) from None
    except (ValueError, OSError, EOFError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: can't be read as a table: {reason}") from None
    if frame.empty:
        raise ConfigError(f"{path}: a table without rows")
    frame.columns = [str(column).strip() for column in frame.columns]
    return frame


def _flattened(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """What lies within a row by the way to it: ``{"config": {"lr": 1}}`` has a ``config.lr``."""
    return pd.json_normalize(rows) if rows else pd.DataFrame()


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows counted from 1: there is no header."""
    frame.index = pd.RangeIndex(1, 1 + len(frame))
    return frame


def _text(path: Path) -> pd.DataFrame:
    csv.field_size_limit(MOST_CELL)
    with _opened(path) as file:
        above, first = _above(file)
        separator = _separator(first)
        if (marked := _header_behind_a_mark(above, first, separator)) is not None:
            lines: Iterable[str] = chain([marked, first], file)
            start = len(above)
        else:
            lines = chain([first], file)
            start = len(above) + 1
        records = enumerate(_cells(lines, separator), start)
        rows = [(row, cells) for row, cells in records if any(map(str.strip, cells))]
    if not rows:
        raise ConfigError(f"{path}: can't be read as a table: it is empty")
    (_, header), *rows = rows
    width = len(header)
    while header and not header[-1].strip():  # a separator that ends every line, as some tools do
        header.pop()
    fitted = []
    odd = []
    for row, cells in rows:
        extra = cells[len(header) :]
        if len(cells) > width and any(map(str.strip, extra)):
            odd.append((row, len(cells)))
        fitted.append(cells[: len(header)] + [""] * (len(header) - len(cells)))
    if odd:
        shown = ", ".join(f"row {row} ({count})" for row, count in odd[:MOST_SHOWN])
        more = f" and {len(odd) - MOST_SHOWN} more" if len(odd) > MOST_SHOWN else ""
        raise ConfigError(
            f"{path}: the header has {len(header)} columns, more cells stand in {len(odd)} of "
            f"{len(rows)} rows: {shown}{more}. A number written with commas needs quotes around it"
        )
    return pd.DataFrame(
        fitted, columns=pd.Index(header), index=pd.Index([row for row, _ in rows]), dtype=str
    )


def _above(file: TextIO) -> tuple[list[str], str]:
    """The blank lines and comments (``# ...``) a table begins with, and the line after them."""
    above: list[str] = []
    for line in file:
        if line.strip() and not line.lstrip().startswith("#"):
            return above, line
        above.append(line)
    return above, ""


def _header_behind_a_mark(above: list[str], first: str, separator: str | None) -> str | None:
    """The header where it is the last comment, as NumPy writes it: ``# N D L`` above numbers.

    A column may also be called ``#``.
    """
    if not above or not (last := above[-1].lstrip()).startswith("#"):
        return None
    (cells,) = _cells([first], separator)
    if not np.isfinite(as_numbers(pd.Series(cells, dtype=object), ".", "")).any():
        return None
    for header in (last[1:].lstrip(), last):
        (names,) = _cells([header], separator)
        if len(names) == len(cells) and names[0].strip():
            return header
    return None


def _cells(lines: Iterable[str], separator: str | None) -> Iterable[list[str]]:
    """The cells of each line; a quoted cell may span several."""
    if separator is None:
        return (line.split() for line in lines)
    if separator == "|":
        return map(_piped, lines)
    return csv.reader(lines, delimiter=separator, skipinitialspace=True)


def _separator(header: str) -> str | None:
    """Of tab, semicolon, comma and bar the one the header holds most often; None for blanks."""
    if header.lstrip().startswith("|"):
        return "|"
    best = max(",;\t|", key=header.count)
    return best if best in header or len(header.split()) < 2 else None


def _piped(line: str) -> list[str]:
    """The cells of a line of a Markdown table; none of the rule below its header."""
    cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    return [] if all(cell and set(cell) <= set("-:") for cell in cells) else cells


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


def _json_table(path: Path) -> pd.DataFrame:
    """A list of rows, or columns by name: lists of one length, or what pandas makes of a frame."""
    with _opened(path) as file:
        found = json.load(file)
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        return _flattened(found)
    columns = list(found.values()) if isinstance(found, dict) else []
    for kind in (list, dict):
        if columns and all(isinstance(c, kind) and len(c) == len(columns[0]) for c in columns):
            # Of a frame each column is a mapping from its index; all have the same one.
            return pd.DataFrame(found).reset_index(drop=True)
    raise ConfigError(
        f"{path}: neither a list of mappings, one a run, nor a mapping of columns of one length"
    )


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """What to say of a file in another encoding, with the line that shows it."""
    if error.encoding != "utf-8":
        return f"{path}: can't be read as a table: broken {error.encoding.upper()}"
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as found:
                return (
                    f"{path}: can't be read as a table: line {number} is not UTF-8 (byte "
                    f"0x{line[found.start]:02x}); the file may be Latin-1 or Windows-1252. Save it "
                    "as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
                )
    return f"{path}: can't be read as a table: broken UTF-8"  # cut off within its last character


def _opened(path: Path) -> TextIO:
    is_zipped = path.suffix.lower() == ".gz"
    opener = gzip.open if is_zipped else open
    with opener(path, "rb") as file:
        mark = file.read(2)
    encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return cast(TextIO, opener(path, "rt", encoding=encoding, newline=""))
