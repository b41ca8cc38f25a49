"""What a line of the ledger says: a forecast or its outcome, of a promotion or of a table's law.

A promotion's rows are written as they have been since version 2, so a program of that version still
reads them; a table's rows came with version 3. Every row names its forecast by ``promotion_id``,
the key by which programs of all versions keep the chain across rows they don't know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from analysis.results import FitWarning, Interval, Prediction

LEDGER_VERSION = 3
PROMOTIONS_VERSION = 2
"""Of a promotion's rows, which have not changed since."""


@dataclass(frozen=True, kw_only=True)
class ForecastRow:
    """What was forecast of a promotion, before the run it speaks of had started."""

    kind: Literal["forecast"] = "forecast"
    version: int = PROMOTIONS_VERSION
    promotion_id: str
    promotion_hash: str
    run_id: str
    sweep: str
    target: str
    registered_at: str
    """UTC, ISO 8601."""
    train_flops: float
    forecast: Prediction
    """Held-out loss at the end of the run, nats per token."""
    overrides: dict[str, str] = field(default_factory=dict)
    """Failed gate to the reason it was overridden for."""
    after_the_fact: bool = False
    """The run's measurement existed already, so this is no forecast and never counts as a hit."""

    @property
    def content_id(self) -> str:
        """The same for the same forecast only."""
        return self.promotion_hash

    @property
    def evidence(self) -> str:
        """Name of what it was fitted to."""
        return self.sweep


@dataclass(frozen=True, kw_only=True)
class FittedTable:
    """The table that a law was fitted to, as it was then."""

    path: str
    sha256: str
    """Of the file's content."""
    num_rows: int
    fitted_rows: tuple[str, ...]
    """A digest of each point fitted: of the law's variables and the loss."""

    @property
    def stem(self) -> str:
        """The file's name without its endings."""
        return Path(self.path).name.split(".")[0]


@dataclass(frozen=True, kw_only=True)
class TableForecastRow:
    """What a table's law forecast at a place where nobody had trained a run yet."""

    kind: Literal["table_forecast"] = "table_forecast"
    version: int = LEDGER_VERSION
    promotion_id: str
    """The forecast's name."""
    content_id: str
    """Hash of what was asked: the table's content, the options of the fit, the place."""
    run_id: str
    """The run it speaks of: the table's name and the place."""
    registered_at: str
    """UTC, ISO 8601."""
    at: dict[str, float]
    """The law's variables there."""
    train_flops: float | None
    """None where the place does not say."""
    forecast: Prediction
    """Nats per token; the distance is from the largest point fitted."""
    law: str
    coefficients: dict[str, Interval]
    warnings: tuple[FitWarning, ...]
    """Of the fit's health."""
    passed_gates: dict[str, str]
    """Gates of a launch by name, with what was found; here they refuse nothing."""
    failed_gates: dict[str, str]
    table: FittedTable
    options: dict[str, Any]
    """Columns, rules and settings of the fit, as it was asked for."""
    software: dict[str, str]
    """Versions it was made with."""
    after_the_fact: bool = False
    """The run was in the table, or its outcome in the ledger: never counts as a hit."""
    earlier: str = ""
    """The forecast of the same run before this one, from another content or by other options."""

    @property
    def evidence(self) -> str:
        """Name of what it was fitted to."""
        return self.table.stem


@dataclass(frozen=True, kw_only=True)
class OutcomeRow:
    """What the run measured, that it diverged, or what somebody states of it."""

    kind: Literal["outcome"] = "outcome"
    version: int = PROMOTIONS_VERSION
    promotion_id: str
    run_id: str
    recorded_at: str
    status: Literal["done", "diverged"]
    reason: str = ""
    loss_nats: float | None
    """Measured held-out loss, nats per token; absent for a diverged run."""
    inside: bool
    """Whether the measured loss lies in the forecast's interval; a diverged run does not."""
    trained: Literal["here", "elsewhere"] = "here"
    """Elsewhere: by another engine; only its weights were measured here, as ``run_id``."""
    stated_by: str = ""
    """Where the loss was taken from if it was not measured here at all. It is on record, but by
    another protocol, so it is no evidence on the intervals."""

    @property
    def doubt(self) -> str:
        """Why it is no evidence on the intervals, in a word or two; empty where it is."""
        return "stated" if self.stated_by else ""


@dataclass(frozen=True, kw_only=True)
class TableOutcomeRow:
    """What a table that holds the run now says of it."""

    kind: Literal["table_outcome"] = "table_outcome"
    version: int = LEDGER_VERSION
    promotion_id: str
    run_id: str
    recorded_at: str
    loss_nats: float
    inside: bool
    table: str
    """Its path."""
    sha256: str
    """Of its content."""
    num_rows: int
    row: str
    """Which row the loss is from."""
    at: dict[str, float]
    """Where that run lies, in the law's variables."""
    num_matching: int
    """Rows within the tolerance of the place; the nearest is taken, of equals the first."""
    num_changed: int
    """Of the rows that were fitted, those that are no longer in the table as they were."""
    status: Literal["done"] = "done"

    @property
    def doubt(self) -> str:
        """Why it is no evidence on the intervals, in a word or two; empty where it is.

        Where the rows that were fitted have other losses now, this one is of another measure too.
        """
        return "table changed" if self.num_changed else ""


Forecast = ForecastRow | TableForecastRow
Outcome = OutcomeRow | TableOutcomeRow
Row = Forecast | Outcome


def outdoes(outcome: Outcome, known: Outcome) -> bool:
    """Whether ``outcome`` is evidence where the known one is only on record."""
    return bool(known.doubt) and not outcome.doubt


@dataclass(frozen=True)
class Entry:
    """One forecast with its outcome, if it has one yet."""

    forecast: Forecast
    outcome: Outcome | None
    trouble: str = ""

    @property
    def name(self) -> str:
        """The promotion's, or the forecast's own."""
        return self.forecast.promotion_id

    @property
    def kind(self) -> Literal["sweep", "table"]:
        """What its law was fitted to."""
        return "table" if isinstance(self.forecast, TableForecastRow) else "sweep"

    @property
    def counts(self) -> bool:
        """Whether it is evidence on the intervals: measured, unaltered, registered before."""
        if self.trouble or self.outcome is None:
            return False
        return not self.forecast.after_the_fact and not self.outcome.doubt

    @property
    def measured(self) -> float | None:
        """The loss that is evidence on the interval, nats per token; None without one."""
        return self.outcome.loss_nats if self.counts and self.outcome is not None else None

    @property
    def verdict(self) -> str:
        """One word for a table."""
        if self.trouble:
            return "ALTERED"
        if self.outcome is None:
            return "open"
        if self.outcome.status == "diverged":
            return "DIVERGED"
        verdict = "inside" if self.outcome.inside else "OUTSIDE"
        if self.forecast.after_the_fact:
            return f"{verdict} (after the fact)"
        return f"{verdict} ({self.outcome.doubt})" if self.outcome.doubt else verdict
