"""Every forecast ever made under a root: hits, misses, and whether the intervals hold.

A forecast is registered before its run and never changed: a row that was later altered, moved or
removed is shown as such (exit code 2) and does not count. Sweeps' forecasts are registered and
closed by `windtunnel launch`.

A table's forecast (`windtunnel fit records=... at.params=... at.tokens=... register=true`) is
closed here: `close=NAME` reads its table again, `records=` another one, and finds the run by its
size and tokens. Without a table state its loss: that is kept, and is no evidence on the intervals.
A run that never came to a loss is closed by `diverged='what happened'`, and counts as a miss.

For scripts, `json=true` prints one JSON object: every forecast with its interval and outcome, and
what they say of the intervals; with `close=` the forecast that was closed.

Example:
  windtunnel ledger
  windtunnel ledger root=/scratch/tunnel
  windtunnel ledger json=true
  windtunnel ledger close=latest
  windtunnel ledger close=runs-1f0c93d2 records=more_runs.csv tolerance=0.05
  windtunnel ledger close=runs-1f0c93d2 loss_nats=1.874 source='held-out shard 3'
  windtunnel ledger close=runs-1f0c93d2 diverged='loss of 9 from step 4,000 on'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from model.config import require, require_positive
from model.errors import ConfigError
from windtunnel.answers.ledger import entry_answer, ledger_answer
from windtunnel.calibration import calibration, calibration_sentence
from windtunnel.closing import (
    diverged_outcome,
    forecast_to_close,
    outcome_in_table,
    refuse_another_unit,
)
from windtunnel.console import prose
from windtunnel.elsewhere import stated_outcome
from windtunnel.for_scripts import ForScripts, write_answer
from windtunnel.ledger import Ledger, Reading, ledger_of
from windtunnel.ledger_rows import Entry, ForecastRow, Outcome, TableForecastRow
from windtunnel.promotion import Promotions
from windtunnel.promotion_tables import ledger_table, origin_text, verdict_text
from windtunnel.table_forecasts import revised_text
from windtunnel.table_runs import SAME_PLACE, place_text


@dataclass(frozen=True, kw_only=True)
class Config(ForScripts):
    """``conf/ledger.yaml``."""

    root: Path
    close: str | None = None
    records: Path | None = None
    tolerance: float = SAME_PLACE
    loss_nats: float | None = None
    source: str | None = None
    diverged: str | None = None
    check_units: bool = True

    def __post_init__(self) -> None:
        require_positive(tolerance=self.tolerance)
        ends = {"records": self.records, "loss_nats": self.loss_nats, "diverged": self.diverged}
        for name, value in (*ends.items(), ("source", self.source)):
            require(
                value is None or self.close is not None,
                f"{name}={value} closes a table's forecast: say which one, close=NAME or "
                "close=latest",
            )
        given = [f"{name}={value}" for name, value in ends.items() if value is not None]
        require(len(given) < 2, f"{' and '.join(given)}: give one, the run has one end")
        if self.loss_nats is not None:
            require_positive(loss_nats=self.loss_nats)
            require(
                bool(self.source and self.source.strip()),
                f"loss_nats={self.loss_nats} needs source='...': where the number is from, for the "
                "ledger",
            )
        else:
            require(
                self.source is None,
                f"source={self.source} belongs to loss_nats, which is not given",
            )


def run(config: Config, console: Console) -> int:
    """Close a forecast, or print the ledger and what it says of the intervals."""
    ledger = ledger_of(config.root)
    if config.close is not None:
        return _close(config, config.close, ledger, console)
    read = ledger.read()
    entries, problems = read.entries, read.problems
    differing = disagreements(entries, Promotions(config.root))
    code = 2 if differing or read.is_damaged else 0
    if config.json:
        write_answer("ledger", ledger_answer(ledger, read, differing))
        return code
    if not entries and not problems:
        lost = "the file is empty; if it held forecasts before, bring back a copy of it. "
        prose(
            console,
            f"{ledger.path}: {lost if ledger.path.exists() else ''}no forecast yet; the first is "
            "registered by `windtunnel launch`, or of a table by `windtunnel fit` with "
            "register=true",
        )
        return 0
    if entries:
        console.print(ledger_table(entries))
    for entry in entries:
        for line in _notes(entry, read):
            prose(console, f"{entry.name}: {line}")
    prose(console, f"Calibration: {calibration_sentence(calibration(entries))}")
    for problem in (*(f"{ledger.path}, {text}" for text in problems), *differing):
        prose(console, f"! {problem}")
    return code


def _notes(entry: Entry, read: Reading) -> list[str]:
    """What a row has no room for."""
    row = entry.forecast
    if isinstance(row, ForecastRow):
        return [f"gate {gate} was overridden: {why}" for gate, why in row.overrides.items()]
    said = [f"{place_text(row.at)}, by law={row.law} of {row.table.path}"]
    if row.failed_gates:
        said.append(f"a launch would have been refused by {', '.join(row.failed_gates)}")
    earlier = read.find(row.earlier)
    if earlier is not None and isinstance(earlier.forecast, TableForecastRow):
        said.append(revised_text(row, earlier.forecast))
    return [". ".join(["; ".join(said), *origin_text(entry)])]


def _close(config: Config, name: str, ledger: Ledger, console: Console) -> int:
    read = ledger.read()
    row = forecast_to_close(read, name, config.root)
    before = read.find(row.promotion_id)
    outcome: Outcome
    if config.loss_nats is not None and config.source is not None:
        if config.check_units:
            refuse_another_unit(config.loss_nats, row.forecast, "loss_nats")
        outcome = stated_outcome(row, config.loss_nats, config.source)
    elif config.diverged is not None:
        outcome = diverged_outcome(row, config.diverged)
    else:
        path = config.records or Path(row.table.path)
        outcome = outcome_in_table(row, path, config.tolerance, check_units=config.check_units)
    kept = ledger.record_outcome(outcome)
    entry = ledger.entry(row.promotion_id)
    is_known = before is not None and before.outcome == kept
    if config.json:
        closed = {"closed": entry_answer(entry), "was_closed_before": is_known}
        write_answer("ledger", {"path": ledger.path, **closed})
        return 0
    if is_known:
        prose(console, f"Closed before, on {kept.recorded_at}, and stands:")
    prose(console, f"{entry.name}: {verdict_text(entry)}")
    for line in origin_text(entry):
        prose(console, line)
    return 0


def disagreements(entries: tuple[Entry, ...], promotions: Promotions) -> tuple[str, ...]:
    """Forecasts that differ from the frozen promotion they were registered from."""
    found = []
    kept_here = promotions.ids()
    for entry in entries:
        if entry.name not in kept_here or entry.trouble:
            continue  # made elsewhere, or reported as altered already
        try:
            promotion = promotions.find(entry.name)
        except ConfigError as error:
            found.append(str(error))
            continue
        if promotion.forecast != entry.forecast.forecast:
            found.append(f"the ledger's forecast of {entry.name} is not its promotion's")
    return tuple(found)
