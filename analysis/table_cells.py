"""Cells as numbers, and what to say of those that are none."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws import Array

Decimal = Literal[".", ","]
Thousands = Literal["", ",", ".", " ", "'", "_"]
EMPTY = ("", "nan", "none", "na", "n/a", "null", "-", "--", "<na>")

SUFFIXES = {"k": "e3", "m": "e6", "b": "e9", "g": "e9", "t": "e12"}
"""Of counts: thousand, million, billion (giga), trillion."""

WRITTEN = {
    r"-?\d+,\d+": "written with a decimal comma: say table.decimal=',', or use a point",
    r"\d{1,3}(,\d{3})+(\.\d*)?": "written with commas: none between thousands and decimals by a "
    "point, or say table.thousands=','",
    r"\d{1,3}([ '_]\d{3})+": "written in groups of three: say table.thousands, what is between",
    r"\d{1,3}(\.\d{3}){2,}(,\d*)?": "written with points: table.thousands='.' table.decimal=','",
    r"[\d.]+ ?%": "written in percent: use shares",
    r"[\d.]+ ?(\*|x|\u00d7) ?10\^?[\d.]+": "written as a product: use 1e9 for 10^9",
    r"[\d.]+ ?(±|\+-|\+/-).*": "written with its error: a column of values is needed",
}
"""How numbers for people look, and what to do about each."""


def as_numbers(column: pd.Series[Any], decimal: Decimal, thousands: Thousands) -> Array:
    """The column's cells as floats, NaN where a cell is no number."""
    if column.dtype != object and not isinstance(column.dtype, pd.StringDtype):
        return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    text = column.astype(str).str.strip().str.replace("\u2212", "-", regex=False)
    if thousands:
        text = _grouped(text, thousands, decimal)
    text = _suffixed(text, decimal)
    if decimal == ",":
        # A point in such a column is no decimal one: 1.234 may be a thousand or one and a bit.
        text = text.where(~text.str.contains(".", regex=False), "point").str.replace(",", ".")
    return pd.to_numeric(text, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def _suffixed(text: pd.Series[str], decimal: str) -> pd.Series[str]:
    """``1.3B`` as ``1.3e9``: counts of parameters and tokens are often written so."""
    point = r"\." if decimal == "." else ","
    parts = text.str.extract(rf"^(\d+(?:{point}\d*)?) ?([kKmMbBgGtT])$")
    found = parts[1].notna()
    if not found.any():
        return text
    return text.where(~found, parts[0] + parts[1].str.lower().map(SUFFIXES))


def _grouped(text: pd.Series[str], thousands: str, decimal: str) -> pd.Series[str]:
    """Without the marks between thousands, where they do stand between groups of three."""
    mark = {".": r"\.", " ": r"[ \u00a0\u202f]"}.get(thousands, thousands)
    point = r"\." if decimal == "." else ","
    whole = text.str.fullmatch(rf"-?\d{{1,3}}({mark}\d{{3}})+({point}\d*)?")
    return text.where(~whole, text.str.replace(mark, "", regex=True))


def is_empty(column: pd.Series[Any]) -> NDArray[np.bool_]:
    """Which cells hold nothing, in one of the ways that is written."""
    return column.astype(str).str.strip().str.lower().isin(EMPTY).to_numpy()


def as_written(cells: pd.Series[Any]) -> str:
    """What all of these cells have in common, in brackets; the longer pattern first."""
    for pattern in sorted(WRITTEN, key=len, reverse=True):
        if len(cells) and cells.str.strip().str.fullmatch(pattern).all():
            return f" ({WRITTEN[pattern]})"
    return ""
