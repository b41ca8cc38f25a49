"""How a table's forecast is closed: by the table that holds the run now, or by a stated loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.catalogue import LAWS
from analysis.points import Points
from analysis.results import Prediction
from model.errors import ConfigError
from windtunnel.ledger import Reading, utc_now
from windtunnel.ledger_rows import OutcomeRow, TableForecastRow, TableOutcomeRow
from windtunnel.quoting import under
from windtunnel.table_runs import (
    SAME_PLACE,
    find_run,
    no_such_run,
    num_changed,
    read_again,
    row_digests,
    unchanged,
)

LATEST = "latest"
MUCH_NEARER = 3.0
"""Times nearer to the forecast, in log-loss, that a loss is in another unit for it to be asked
about. Read as bits that is so of losses 32 to 73 % too high, which no honest interval misses by."""


def forecast_to_close(read: Reading, name: str, root: Path) -> TableForecastRow:
    """The table's forecast of that name, or the newest one that is open.

    Raises:
        ConfigError: there is none; it names those that are open.
    """
    tables = [entry for entry in read.entries if isinstance(entry.forecast, TableForecastRow)]
    open_ones = [entry for entry in tables if entry.outcome is None]
    entry = next((each for each in tables if each.name == name), None)
    if name == LATEST and open_ones:
        entry = open_ones[-1]
    if entry is not None:
        assert isinstance(entry.forecast, TableForecastRow)
        return entry.forecast
    if read.find(name) is not None:
        raise ConfigError(
            f"close={name}: a promotion's forecast; `windtunnel launch promotion={name}"
            f"{under(root)}` closes it (trained=elsewhere where another engine trains it)"
        )
    names = ", ".join(entry.name for entry in open_ones) or "none"
    raise ConfigError(f"close={name}: no such forecast of a table is open. Open ones: {names}")


def open_in(read: Reading, source: Mapping[str, Any], points: Points) -> Iterator[str]:
    """Names of the open forecasts of a table whose run is among its points by now.

    Args:
        read: the ledger.
        source: of the fit: the table, its columns and rules.
        points: as fitted.
    """
    path = Path(source["table"]).resolve()
    for entry in read.entries:
        row = entry.forecast
        if entry.outcome is not None or not isinstance(row, TableForecastRow):
            continue
        is_same = Path(row.table.path).resolve() == path and all(
            row.options["rules"][name] == source["rules"][name] for name in ("filter", "exclude")
        )
        is_same = is_same and row.options["columns"] == source["columns"]
        if is_same and find_run(points, LAWS[row.law], row.at, SAME_PLACE) is not None:
            yield entry.name


def outcome_in_table(
    row: TableForecastRow, path: Path, tolerance: float, *, check_units: bool
) -> TableOutcomeRow:
    """What the table says of the run now, read as it was when the forecast was registered.

    Raises:
        ConfigError: the run is not in the table, or its loss seems to have another unit.
    """
    law = LAWS[row.law]
    with unchanged(path) as sha256:
        loaded = read_again(path, row.options)
    found = find_run(loaded.points, law, row.at, tolerance)
    if found is None:
        raise ConfigError(f"{path}: {no_such_run(loaded, law, row.at, tolerance)}")
    if check_units:
        refuse_another_unit(found.loss_nats, row.forecast, f"{path}: the loss of {found.row}")
    return TableOutcomeRow(
        promotion_id=row.promotion_id,
        run_id=row.run_id,
        recorded_at=utc_now(),
        loss_nats=found.loss_nats,
        inside=row.forecast.contains(found.loss_nats),
        table=str(path),
        sha256=sha256,
        num_rows=len(loaded.points) + len(loaded.excluded),
        row=found.row,
        at=found.at,
        num_matching=found.num_matching,
        num_changed=num_changed(row.table.fitted_rows, row_digests(loaded.points, law)),
    )


def diverged_outcome(row: TableForecastRow, what_happened: str) -> OutcomeRow:
    """That the run never came to a loss. It needs no measure, so it counts, as a miss: a ledger
    without such runs would flatter the others.
    """
    return OutcomeRow(
        promotion_id=row.promotion_id,
        run_id=row.run_id,
        recorded_at=utc_now(),
        status="diverged",
        reason=what_happened,
        loss_nats=None,
        inside=False,
        trained="elsewhere",
    )


def refuse_another_unit(loss_nats: float, forecast: Prediction, what: str) -> None:
    """Refuse a loss that misses its forecast as bits or a perplexity would.

    Raises:
        ConfigError: with the loss in nats that it would be.
    """
    if forecast.contains(loss_nats):
        return
    read_as = {"bits": loss_nats * math.log(2), "a perplexity": math.log(max(loss_nats, 1.0))}
    miss = {name: _miss(loss, forecast) for name, loss in read_as.items() if loss > 0}
    if not miss:
        return
    likely = min(miss, key=lambda name: miss[name])
    if miss[likely] * MUCH_NEARER < _miss(loss_nats, forecast):
        raise ConfigError(
            f"{what} is {loss_nats:.4g}, its forecast {forecast.value:.4g} nats "
            f"({forecast.low:.4g} to {forecast.high:.4g}); read as {likely} it would be "
            f"{read_as[likely]:.4g} nats. Give nats per token, or if it is that already say "
            "check_units=false"
        )


def _miss(loss_nats: float, forecast: Prediction) -> float:
    return abs(math.log(loss_nats / forecast.value))
