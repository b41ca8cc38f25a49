"""Which row of a table is the run that a forecast speaks of, found by its place."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.catalogue import AnyLaw, the_law
from analysis.laws import Array
from analysis.points import Points
from analysis.table_options import Columns, TableRules
from analysis.tables import Loaded, load_table
from model.errors import ConfigError
from model.typed import build
from sweeps.files import text_hash

SAME_PLACE = 0.02
"""Share by which a run may differ from its plan in each variable: real token counts are whole
batches, and real sizes whole heads."""
MOST_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A measured run near a place."""

    row: str
    at: dict[str, float]
    loss_nats: float
    off: float
    """The largest share by which one of its variables differs from the place."""
    num_matching: int
    """Rows as near as was asked; of equally near ones the first in the table is taken."""


def read_again(path: Path, options: Mapping[str, Any]) -> Loaded:
    """Every row that holds a measurement, those too that a fit keeps for a test or drops as odd.

    ``options``: of the fit, as its row in the ledger has them.
    """
    columns = build(Columns, options["columns"], where="columns")
    rules = build(TableRules, options["rules"], where="table")
    every = replace(rules, test={}, drop_highest_losses=0, bad_rows="drop", check_units=False)
    return load_table(path, columns, every)


def find_run(
    points: Points, law: type[AnyLaw], place: Mapping[str, float], tolerance: float
) -> FoundRun | None:
    """The measured run nearest to ``place``, if one is within the tolerance of it."""
    off = _off(points, law, place)
    near = np.flatnonzero(off <= tolerance * (1 + 1e-9))
    if len(near) == 0:
        return None
    nearest = int(near[np.argmin(off[near])])  # of equals the first
    return FoundRun(
        row=points.label[nearest],
        at={name: float(column[nearest]) for name, column in _columns(points, law).items()},
        loss_nats=points.loss[nearest],
        off=float(off[nearest]),
        num_matching=len(near),
    )


def no_such_run(
    loaded: Loaded, law: type[AnyLaw], place: Mapping[str, float], tolerance: float
) -> str:
    """Why :func:`find_run` found none: which row comes nearest, and which are no measurements."""
    off = _off(loaded.points, law, place)
    nearest = int(np.argmin(off))
    columns = _columns(loaded.points, law)
    there = {name: float(column[nearest]) for name, column in columns.items()}
    said = (
        f"no run within {tolerance:.3g} of {place_text(place)}; the nearest is "
        f"{loaded.points.label[nearest]} at {place_text(there)}"
    )
    unmeasured = [each for each in loaded.excluded if "(columns." in each.reason]
    if unmeasured:
        shown = "; ".join(f"{each.label}: {each.reason}" for each in unmeasured[:MOST_SHOWN])
        more = f" and {len(unmeasured) - MOST_SHOWN} more" if len(unmeasured) > MOST_SHOWN else ""
        said += f". No measurement: {shown}{more}"
    return said


def row_digests(points: Points, law: type[AnyLaw]) -> tuple[str, ...]:
    """A few digits for each point, which change with any of the law's variables and the loss."""
    columns = [*_columns(points, law).values(), points.array("loss")]
    return tuple(
        text_hash(" ".join(f"{value:.10g}" for value in row), digits=8)
        for row in zip(*columns, strict=True)
    )


def num_changed(before: tuple[str, ...], now: tuple[str, ...]) -> int:
    """How many of the rows from before are no longer there as they were."""
    return (Counter(before) - Counter(now)).total()


def place_text(place: Mapping[str, float]) -> str:
    """A place in words: ``size 1e+08, tokens 2e+09``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in place.items())


@contextmanager
def unchanged(path: Path, sha256: str = "") -> Iterator[str]:
    """The hash of the file's content, which stays the same while it is read.

    ``sha256``: what it was before; empty where nobody asked yet.

    Raises:
        ConfigError: it was written meanwhile.
    """
    before = file_sha256(path)
    yield before
    if len({file_sha256(path), before, sha256 or before}) > 1:
        raise ConfigError(f"{path}: was written while it was read; run the same command again")


def file_sha256(path: Path) -> str:
    """Of the file's content; empty where there is none to be read, which its reader says better."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _columns(points: Points, law: type[AnyLaw]) -> dict[str, Array]:
    return {name: points.column(name, the_law(law)) for name in law.VARIABLES}


def _off(points: Points, law: type[AnyLaw], place: Mapping[str, float]) -> Array:
    """By how much each run differs from the place, in the variable it differs most in."""
    columns = _columns(points, law)
    each = [np.abs(column / place[name] - 1) for name, column in columns.items()]
    return np.asarray(np.max(each, axis=0))
