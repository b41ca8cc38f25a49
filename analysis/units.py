"""Columns in wrong or mixed units: found before they become a law."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.points import Points
from model.errors import ConfigError

UNIT_GAP = 1e3
"""Neighbouring values of one column further apart than this are taken for two units."""
PLAUSIBLE = {
    "params": (1e3, 1e14),
    "flops_per_token": (1e3, 1e15),
    "tokens": (1e4, 1e16),
    "flops": (1e8, 1e30),
}
"""Where the median of a column lies. The smallest tunnel has 1e4 parameters and 1e5 tokens."""
POSSIBLE = {
    "activation_ratio": (1e-6, 1.0, "a share of the experts lies between 0 and 1"),
    "num_experts": (1.0, 1e7, "one expert or more is usual"),
    "granularity": (1e-2, 1e5, "0.01 to 100,000 is usual"),
    "unique_tokens": (1e3, 1e17, "1e3 to 1e17 is usual"),
    "peak_lr": (1e-9, 10.0, "1e-9 to 10 is usual"),
    "batch_tokens": (16.0, 1e10, "16 to 1e10 is usual"),
}
"""Of a law's further variables: the least, the most, and why."""
MOST_PASSES = 1e5
"""Over one text. The most that was published is about 1,700 (arXiv:2305.16264: 174e9 of 1e8)."""
LEAST_NATS = 1e-3
"""Of a next token that is known to one in a thousand."""
MOST_NATS = 20.0
"""Log of half a billion: no vocabulary is that large."""
FLOPS_FACTOR = 1e3
"""Flops over 6·N·D: a mixture whose size counts all experts reaches 1/50, attention doubles it."""
MOST_SHOWN = 3
FEWEST_FOR_RANKS = 8
RISES = 0.7
"""Rank correlation of loss and compute above which the column can't be a loss."""


def check_units(
    points: Points,
    rows: NDArray[np.intp],
    where: str,
    *,
    params_are: str,
    pair: float = 6.0,
    derived: str | None = None,
) -> None:
    """Refuse columns that hold two units, or hold millions for ones.

    Args:
        points: of the table.
        rows: their numbers in it.
        where: the table.
        params_are: what the sizes count.
        pair: C over N·D where nothing else is known.
        derived: the one of params, tokens and flops that follows from the two others.

    Raises:
        ConfigError: naming the column, the rows and their number.
    """
    size, tokens, loss = (points.array(name) for name in ("size", "tokens", "loss"))
    if derived is not None:
        _check_derived(points.array("size" if derived == "params" else derived), derived, where)
    columns = [("params", "params", size), ("tokens", "tokens", tokens)]
    if not (len(size) and len(tokens)):  # otherwise held against the two others below
        columns.append(("flops", "flops", points.array("flops")))
    for name, unit, column in columns:
        if len(column) == 0:
            continue
        _check_gap(column, rows, where, name)
        low, high = PLAUSIBLE[params_are if name == "params" else name]
        median = float(np.median(column))
        if not low <= median <= high:
            raise ConfigError(
                f"{where}: {name} of {median:.3g} in the median of {len(rows)} rows, where "
                f"{low:.0e} to {high:.0e} is usual; if the column is in millions or billions say "
                f"table.{unit}_unit=1e6 (or 1e9), if it is right say table.check_units=false"
                f"{_as_logarithms(column)}"
            )
    _check_gap(loss, rows, where, "loss")
    if np.median(loss) < LEAST_NATS:
        raise ConfigError(
            f"{where}: a loss of {np.median(loss):.3g} in the median of {len(rows)} rows can't be "
            "nats per token: no text is known so well. Say table.loss_unit (bits, or how "
            "many nats 1 in the column stands for), or if it is right table.check_units=false"
        )
    if np.median(loss) > MOST_NATS:
        raise ConfigError(
            f"{where}: a loss of {np.median(loss):.3g} in the median of {len(rows)} rows can't be "
            "nats per token; of perplexities the logarithm is taken with table.loss_is=perplexity. "
            "If it is right say table.check_units=false"
        )
    if len(size) and len(tokens):
        _check_factor(points.array("flops") / (pair * size * tokens), rows, where)


def check_variables(
    points: Points, names: Sequence[str], rows: NDArray[np.intp], where: str
) -> None:
    """Refuse a law's further variable where no value of it can be what its name says.

    Args:
        points: of the table.
        names: the variables that the caller has named a column for.
        rows: their numbers in it.
        where: the table.

    Raises:
        ConfigError: naming the variable, the rows and their number.
    """
    for name in names:
        low, high, usual = POSSIBLE.get(name, (0.0, np.inf, ""))
        column = points.array(name)
        odd = np.flatnonzero((column < low) | (column > high))
        if len(odd):
            raise ConfigError(
                f"{where}: {name} of {column[odd[0]]:.4g} in {_rows(rows[odd])} of {len(rows)}, "
                f"where {usual}; if the column has another unit say table.variables_unit.{name}"
                f"=..., if it is right table.check_units=false"
            )
    if "unique_tokens" in names and points.tokens:
        passes = points.array("tokens") / points.array("unique_tokens")
        odd = np.flatnonzero(passes > MOST_PASSES)
        if len(odd):
            raise ConfigError(
                f"{where}: {_rows(rows[odd])} of {len(rows)} would have read their unique tokens "
                f"{passes[odd[0]]:.3g} times: tokens and unique tokens have different units? Say "
                "table.variables_unit.unique_tokens=1e9 (or 1e6), or if they are right "
                "table.check_units=false"
            )


def check_falls(points: Points, where: str) -> None:
    """Refuse a loss that is the same everywhere, or rises with what is spent: another column.

    Raises:
        ConfigError: naming the one loss, or the rank correlation.
    """
    spent = next(
        (points.array(name) for name in ("flops", "size", "tokens") if getattr(points, name)), None
    )
    loss = points.array("loss")
    if len(loss) > 1 and np.ptp(loss) == 0:
        raise ConfigError(
            f"{where}: all {len(loss)} rows have a loss of {loss[0]:.6g}. Nothing falls with size "
            "or tokens, so there is no law to fit; is it the right column (columns.loss)?"
        )
    if spent is None or len(loss) < FEWEST_FOR_RANKS or min(np.ptp(spent), np.ptp(loss)) == 0:
        return
    ranks = [np.argsort(np.argsort(column)) for column in (spent, loss)]
    correlation = float(np.corrcoef(ranks[0], ranks[1]).item(0, 1))
    if correlation > RISES:
        raise ConfigError(
            f"{where}: the loss rises with what is spent (rank correlation {correlation:+.2f} over "
            f"{len(loss)} rows). A score or an accuracy must be turned into an error first; if it "
            "is right say table.check_units=false"
        )


def _check_derived(column: Array, derived: str, where: str) -> None:
    """What follows from two columns tells of either's unit."""
    low, high = PLAUSIBLE[derived]
    median = float(np.median(column))
    if low <= median <= high:
        return
    one, other = (name for name in ("params", "tokens", "flops") if name != derived)
    units = {"params": "1e6", "tokens": "1e9", "flops": "1e9 for gigaFLOPs, 1e12 for teraFLOPs"}
    raise ConfigError(
        f"{where}: from {one} and {other} follow {derived} of {median:.3g} in the median, where "
        f"{low:.0e} to {high:.0e} is usual: one of the two columns has another unit. Say "
        f"table.{one}_unit ({units[one]}) or table.{other}_unit ({units[other]}), or if they are "
        "right table.check_units=false"
    )


def _as_logarithms(column: Array) -> str:
    """A hint where the values read as log10 of a usual count."""
    if column.min() > 3 and column.max() < 16:
        return ". Values between 3 and 16 may be log10 of counts: a column of counts is needed"
    return ""


def _check_gap(column: Array, rows: NDArray[np.intp], where: str, name: str) -> None:
    order = np.argsort(column)
    jumps = np.flatnonzero(column[order][1:] / column[order][:-1] > UNIT_GAP)
    if len(jumps) == 0:
        return
    below, above = order[: jumps[0] + 1], order[jumps[0] + 1 :]
    odd, rest = (below, above) if len(below) <= len(above) else (above, below)
    lies = (
        f"is {column[odd[0]]:.3g}"
        if len(odd) == 1
        else f"lie between {column[odd].min():.3g} and {column[odd].max():.3g}"
    )
    raise ConfigError(
        f"{where}: {name} seems to hold two units: {_rows(rows[np.sort(odd)])} of {len(rows)} "
        f"{lies}, all others between {column[rest].min():.3g} and {column[rest].max():.3g}. "
        "Correct the column, or if it is right say table.check_units=false"
    )


def _check_factor(factor: Array, rows: NDArray[np.intp], where: str) -> None:
    median = float(np.median(factor))
    odd = np.flatnonzero((factor / median > UNIT_GAP / 10) | (median / factor > UNIT_GAP / 10))
    if len(odd):
        raise ConfigError(
            f"{where}: {_rows(rows[odd])} of {len(rows)} have flops / (6·params·tokens) of about "
            f"{factor[odd[0]]:.3g}, the others {median:.3g}: two units in one of the columns? "
            "Correct them, or if they are right say table.check_units=false"
        )
    if not 1 / FLOPS_FACTOR < median < FLOPS_FACTOR:
        raise ConfigError(
            f"{where}: flops / (6·params·tokens) is {median:.3g} in the median of {len(rows)} "
            "rows; one of the three columns has another unit. Set table.params_unit or "
            "table.tokens_unit, or if they are right say table.check_units=false"
        )


def _rows(rows: Sequence[int] | NDArray[np.intp]) -> str:
    shown = ", ".join(f"row {row}" for row in rows[:MOST_SHOWN])
    more = f" and {len(rows) - MOST_SHOWN} more" if len(rows) > MOST_SHOWN else ""
    return f"{shown}{more} ({len(rows)} rows)" if len(rows) > 1 else shown
