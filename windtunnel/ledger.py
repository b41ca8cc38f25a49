"""The forecast ledger: what was forecast before a launch, and what the launch then measured.

One JSON object a line, only ever appended: a forecast row before training starts, an outcome row
after it ended. Every row carries the hash of its own content and of the row before, so a forecast
that was altered, moved or taken out later is seen. A line that a crash tore is kept and told apart
from a corrupted one: rows written after it continue the chain across it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

from analysis.results import Prediction
from model.errors import ConfigError
from model.files import durable_folder, sync_file, sync_folder
from model.typed import build_union, to_plain
from sweeps.files import content_hash

LEDGER_VERSION = 2
FIRST = "0" * 64
"""What the first row names as the row before it."""
UNREADABLE = "cannot be read: torn while it was written, or corrupted since"
TORN = "torn while it was written; the rows after it show that none was lost"
LOST = "corrupted: a row that stood here can no longer be read"


@dataclass(frozen=True, kw_only=True)
class ForecastRow:
    """What was forecast, before the run it speaks of had started."""

    kind: Literal["forecast"] = "forecast"
    version: int = LEDGER_VERSION
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


@dataclass(frozen=True, kw_only=True)
class OutcomeRow:
    """What the run measured, or that it diverged."""

    kind: Literal["outcome"] = "outcome"
    version: int = LEDGER_VERSION
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

    def outdoes(self, other: OutcomeRow) -> bool:
        """Whether it was measured where ``other`` was only stated."""
        return bool(other.stated_by) and not self.stated_by


Row = ForecastRow | OutcomeRow


@dataclass(frozen=True)
class Line:
    """One line of the file, read and checked."""

    number: int
    row: Row | None
    promotion_id: str = ""
    hash: str = ""
    """As written; the next row continues from it. Empty for an unreadable line."""
    trouble: str = ""
    """Why the line cannot be trusted; empty for a sound one."""


@dataclass(frozen=True)
class Entry:
    """One forecast with its outcome, if it has one yet."""

    forecast: ForecastRow
    outcome: OutcomeRow | None
    trouble: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is evidence on the intervals: measured here, unaltered, registered before."""
        if self.trouble or self.outcome is None:
            return False
        return not self.forecast.after_the_fact and not self.outcome.stated_by

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
        return f"{verdict} (stated)" if self.outcome.stated_by else verdict


@dataclass(frozen=True)
class Reading:
    """The ledger at one moment: its entries and what is wrong with it are of the same lines."""

    lines: tuple[Line, ...]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every forecast ever registered, oldest first, with its outcome."""
        forecasts: dict[str, tuple[ForecastRow, str]] = {}
        outcomes: dict[str, tuple[OutcomeRow, str]] = {}
        for line in self.lines:
            if isinstance(line.row, ForecastRow):
                forecasts.setdefault(line.row.promotion_id, (line.row, line.trouble))
            elif isinstance(line.row, OutcomeRow):
                known = outcomes.get(line.row.promotion_id)
                if known is None or line.row.outdoes(known[0]):
                    outcomes[line.row.promotion_id] = (line.row, line.trouble)
        entries = []
        for promotion_id, (forecast, trouble) in forecasts.items():
            outcome, outcome_trouble = outcomes.get(promotion_id, (None, ""))
            entries.append(Entry(forecast, outcome, trouble or outcome_trouble))
        return tuple(entries)

    def find(self, promotion_id: str) -> Entry | None:
        """The entry of one promotion."""
        return next((e for e in self.entries if e.forecast.promotion_id == promotion_id), None)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each line that cannot be trusted, and for a torn one."""
        return tuple(f"line {line.number}: {line.trouble}" for line in self.lines if line.trouble)

    @property
    def is_damaged(self) -> bool:
        """Whether a row was altered, moved or lost; a line torn by a crash is no damage."""
        return any(line.trouble not in ("", TORN, UNREADABLE) for line in self.lines)


class Ledger:
    """The file and its rules. Reading never changes it; writing only appends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def register(self, row: ForecastRow) -> ForecastRow:
        """Append the forecast, or return the one already registered for this promotion.

        Raises:
            ConfigError: when the registered forecast was altered, or is of another content.
        """
        with self._locked() as lines:
            for line in lines:
                if line.promotion_id != row.promotion_id:
                    continue
                self._refuse_altered(line)
                if isinstance(line.row, ForecastRow):
                    if line.row.promotion_hash != row.promotion_hash:
                        raise ConfigError(
                            f"{self.path}: line {line.number} already holds another forecast "
                            f"named {row.promotion_id}; promote again to get a name of its own"
                        )
                    return line.row
            self._append(row, lines)
        return row

    def record_outcome(self, row: OutcomeRow) -> OutcomeRow:
        """Append the outcome of a registered forecast, or return the one already there.

        A measured outcome is appended to a stated one, and takes its place.
        """
        with self._locked() as lines:
            registered = False
            for line in lines:
                if line.promotion_id != row.promotion_id:
                    continue
                self._refuse_altered(line)
                if isinstance(line.row, OutcomeRow) and not row.outdoes(line.row):
                    return line.row
                registered = True
            if not registered:
                raise ConfigError(
                    f"{self.path}: no forecast of {row.promotion_id} was registered before its "
                    "outcome; launch it with `windtunnel launch`"
                )
            self._append(row, lines)
        return row

    def read(self) -> Reading:
        """The file as it stands now, read once."""
        return Reading(self.lines())

    def find(self, promotion_id: str) -> Entry | None:
        """The entry of one promotion, as the file stands now."""
        return self.read().find(promotion_id)

    def lines(self) -> tuple[Line, ...]:
        """Every line, read back and checked against the chain of hashes."""
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ()
        return _check_chain(text)

    def _refuse_altered(self, line: Line) -> None:
        if line.trouble:
            raise ConfigError(
                f"{self.path}: line {line.number}: {line.trouble}; put the line back as it was"
            )

    @contextmanager
    def _locked(self) -> Iterator[tuple[Line, ...]]:
        """Hold the file against other launches; the kernel lets go when the process dies."""
        durable_folder(self.path.parent)
        with open(self.path.with_name(self.path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.lines()

    def _append(self, row: Row, lines: tuple[Line, ...]) -> None:
        previous = next((line.hash for line in reversed(lines) if line.hash), FIRST)
        content = {**to_plain(row), "previous": previous}
        content["hash"] = _row_hash(content)
        with open(self.path, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")  # a torn line stays as it is, on a line of its own
            file.write((json.dumps(content, ensure_ascii=False) + "\n").encode())
            sync_file(file)
        if not lines:
            sync_folder(self.path.parent)


def _row_hash(content: Mapping[str, Any]) -> str:
    return content_hash({k: v for k, v in content.items() if k != "hash"}, digits=64)


def utc_now() -> str:
    """Now, as rows and promotions write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _check_chain(text: str) -> tuple[Line, ...]:
    """Lines with their trouble. A break of the chain is blamed on what stands in the gap."""
    lines: list[Line] = []
    previous = FIRST
    gap: list[int] = []  # places in ``lines`` of unreadable ones since the last readable one
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        content = _parse(raw)
        if content is None:
            gap.append(len(lines))
            lines.append(Line(number, None, trouble=UNREADABLE))
            continue
        row = _row(content)
        trouble = ""
        if _row_hash(content) != content["hash"]:
            trouble = "altered after it was written: its content does not match its hash"
        elif content["previous"] != previous and not gap:
            trouble = "a row before this one was taken out, moved or replaced"
        elif row is None:
            trouble = "not a row of this version of the ledger"
        for index in gap:
            verdict = TORN if content["previous"] == previous else LOST
            lines[index] = replace(lines[index], trouble=verdict)
        lines.append(Line(number, row, content["promotion_id"], content["hash"], trouble))
        previous, gap = content["hash"], []
    return tuple(lines)


def _parse(raw: str) -> dict[str, Any] | None:
    """The line as a mapping that can stand in the chain, or None."""
    try:
        content = json.loads(raw)
    except (json.JSONDecodeError, RecursionError):
        return None
    needed = ("promotion_id", "previous", "hash")
    if isinstance(content, dict) and all(isinstance(content.get(key), str) for key in needed):
        return content
    return None


def _row(content: dict[str, Any]) -> Row | None:
    fields = {key: value for key, value in content.items() if key not in ("hash", "previous")}
    try:
        row: Row = build_union(Row, fields, where="ledger")
    except ConfigError:
        return None
    return row
