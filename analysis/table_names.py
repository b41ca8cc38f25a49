"""The names of a table's columns: those the caller gave, and those a table may mean."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.table_cells import SUFFIXES
from analysis.table_options import Columns
from model.errors import ConfigError

USUAL = {
    "params": ("n", "params", "nparams", "parameters", "modelsize", "size", "nonembeddingparams"),
    "tokens": (
        "d",
        "tokens",
        "ntokens",
        "trainingtokens",
        "tokensseen",
        "datasize",
        "pretrainingdatasize",
    ),
    "flops": ("c", "flops", "trainingflop", "trainingflops", "compute", "budget", "trainflops"),
    "loss": ("l", "loss", "valloss", "evalloss", "validationloss", "testloss", "finalloss"),
}
"""How such columns are often called, to say which ones a table may mean."""


def check_named(path: Path, frame: pd.DataFrame, columns: Columns) -> None:
    """Refuse names that no column has, and a table whose loss or variables nobody named.

    Raises:
        ConfigError: with the columns there are, and those that are perhaps meant.
    """
    roles = ("params", "tokens", "loss", "flops", "seed", "label")
    for role in roles:
        if getattr(columns, role) is not None:
            find_column(path, frame, f"columns.{role}", getattr(columns, role))
    given = f"{path} has: {_listed(frame.columns)}{_guess(frame, columns)}"
    if columns.loss is None:
        raise ConfigError(f"columns.loss: missing; name the column. {given}")
    if not any((columns.params, columns.tokens, columns.flops, columns.variables)):
        raise ConfigError(
            "columns.params: missing; name the column of the model sizes, and of the tokens with "
            "columns.tokens or of the training FLOPs with columns.flops (one of the three is "
            f"enough for law=size, law=tokens or law=compute). {given}"
        )


def _guess(frame: pd.DataFrame, columns: Columns) -> str:
    """Columns that are called as such columns often are."""
    plain: dict[str, tuple[str, str]] = {}
    for name in map(str, frame.columns):
        bare, _, unit = re.sub(r"[\[(](.*?)[\])]\s*$", r"|\1", name).partition("|")
        plain["".join(filter(str.isalnum, bare.lower()))] = name, unit.strip()
    found = []
    for role, names in USUAL.items():
        usual = next((usual for usual in names if usual in plain), None)
        if usual is None or getattr(columns, role) is not None:
            continue
        name, unit = plain[usual]
        found.append(f"columns.{role}={_quoted(name)}")
        if factor := _factor(unit):
            found.append(f"table.{role}_unit={factor}")
    return f". Perhaps {' '.join(found)}" if found else ""


def _factor(unit: str) -> str:
    """``1e9`` of ``B`` or ``billions``, ``1e21`` of ``1E21``; empty for what is no factor."""
    if re.fullmatch(r"1e\d+", unit.lower()):
        return unit.lower()
    exponent = SUFFIXES.get(unit[:1].lower(), "")
    is_factor = unit.upper() in ("K", "M", "B", "G", "T") or unit.lower().endswith("illions")
    return f"1{exponent}" if is_factor and exponent else ""


def _quoted(name: str) -> str:
    return name if name.replace("_", "").isalnum() else f"\"'{name}'\""


def find_column(path: Path, frame: pd.DataFrame, option: str, name: str) -> None:
    """Refuse a name that no column has, or several have; ``option`` is where it was given."""
    names = list(frame.columns)
    count = names.count(name)
    if count == 0:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"{option}: no column {name!r} in {path}{hint} It has: {_listed(names)}")
    if count > 1:
        raise ConfigError(f"{option}: {count} columns of {path} are called {name!r}")


def _listed(names: Iterable[str], most: int = 40, longest: int = 600) -> str:
    """As many as ``most`` and ``longest`` characters allow, and how many are left."""
    names = list(map(str, names))
    length_N = np.cumsum([len(name) + 2 for name in names])
    shown = max(1, min(most, int((length_N <= longest).sum())))
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
