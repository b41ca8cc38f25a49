"""Every forecast ever made under a root: hits, misses, and whether the intervals hold.

A forecast is registered before its launch and never changed: a row that was later altered, moved or
removed is shown as such (exit code 2) and does not count.

Example:
  windtunnel ledger
  windtunnel ledger root=/scratch/tunnel
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from model.errors import ConfigError
from windtunnel.calibration import calibration, calibration_sentence
from windtunnel.console import prose, table
from windtunnel.launch import ledger_of
from windtunnel.ledger import Entry
from windtunnel.promotion import Promotions
from windtunnel.promotion_tables import LEDGER_COLUMNS, ledger_rows


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/ledger.yaml``."""

    root: Path


def run(config: Config, console: Console) -> int:
    """Print the ledger and what it says of the intervals."""
    ledger = ledger_of(config.root)
    read = ledger.read()
    entries, problems = read.entries, read.problems
    if not entries and not problems:
        console.print(
            f"{ledger.path}: no forecast yet; the first is registered by `windtunnel launch`",
            markup=False,
        )
        return 0
    console.print(table(LEDGER_COLUMNS, ledger_rows(entries), title="Forecasts and outcomes"))
    for entry in entries:
        for gate, reason in entry.forecast.overrides.items():
            name = entry.forecast.promotion_id
            prose(console, f"{name}: gate {gate} was overridden: {reason}")
    prose(console, f"Calibration: {calibration_sentence(calibration(entries))}")
    differing = disagreements(entries, Promotions(config.root))
    for problem in (*(f"{ledger.path}, {text}" for text in problems), *differing):
        prose(console, f"! {problem}")
    return 2 if differing or read.is_damaged else 0


def disagreements(entries: tuple[Entry, ...], promotions: Promotions) -> tuple[str, ...]:
    """Forecasts that differ from the frozen promotion they were registered from."""
    found = []
    kept_here = promotions.ids()
    for entry in entries:
        name = entry.forecast.promotion_id
        if name not in kept_here or entry.trouble:
            continue  # made elsewhere, or reported as altered already
        try:
            promotion = promotions.find(name)
        except ConfigError as error:
            found.append(str(error))
            continue
        if promotion.forecast != entry.forecast.forecast:
            found.append(f"the ledger's forecast of {name} is not its promotion's")
    return tuple(found)
