"""The forecast ledger: what was forecast before a run, and what the run then measured.

One JSON object a line, only ever appended: a forecast row before training starts, an outcome row
after it ended (:mod:`windtunnel.ledger_rows`). Every row carries the hash of its own content and of
the row before, so a forecast that was altered, moved or taken out later is seen. A line that a
crash tore is kept and told apart from a corrupted one: rows written after it continue the chain
across it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import ConfigError
from model.files import durable_folder, sync_file, sync_folder
from model.locks import alone
from model.typed import build_union, to_plain
from sweeps.files import content_hash
from windtunnel.ledger_rows import (
    Entry,
    Forecast,
    Outcome,
    Row,
    TableForecastRow,
    outdoes,
)

FIRST = "0" * 64
"""What the first row names as the row before it."""
UNREADABLE = "cannot be read: torn while it was written, or corrupted since"
TORN = "torn while it was written; the rows after it show that none was lost"
LOST = "corrupted: a row that stood here can no longer be read"


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
class Reading:
    """The ledger at one moment: its entries and what is wrong with it are of the same lines."""

    lines: tuple[Line, ...]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every forecast ever registered, oldest first, with its outcome."""
        forecasts: dict[str, tuple[Forecast, str]] = {}
        outcomes: dict[str, tuple[Outcome, str]] = {}
        for line in self.lines:
            if isinstance(line.row, Forecast):
                forecasts.setdefault(line.row.promotion_id, (line.row, line.trouble))
            elif isinstance(line.row, Outcome):
                known = outcomes.get(line.row.promotion_id)
                if known is None or outdoes(line.row, known[0]):
                    outcomes[line.row.promotion_id] = (line.row, line.trouble)
        entries = []
        for promotion_id, (forecast, trouble) in forecasts.items():
            outcome, outcome_trouble = outcomes.get(promotion_id, (None, ""))
            entries.append(Entry(forecast, outcome, trouble or outcome_trouble))
        return tuple(entries)

    def find(self, promotion_id: str) -> Entry | None:
        """The entry of one forecast."""
        return next((e for e in self.entries if e.name == promotion_id), None)

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

    def register(self, row: Forecast) -> Forecast:
        """Append the forecast, or return the one already registered of the same content.

        A table's forecast is told by the ledger which one of the same run came before it, and
        whether that run's outcome is known.

        Raises:
            ConfigError: when the registered forecast was altered, or is of another content.
        """
        with self._locked() as lines:
            for line in lines:
                known = line.row if isinstance(line.row, Forecast) else None
                is_same = known is not None and known.content_id == row.content_id
                # A table's forecast is the same from a copy of the file, which has another name.
                is_copied = is_same and isinstance(row, TableForecastRow)
                if line.promotion_id != row.promotion_id and not is_copied:
                    continue
                self._refuse_altered(line)
                if known is not None:
                    if not is_same:
                        raise ConfigError(
                            f"{self.path}: line {line.number} already holds another forecast "
                            f"named {row.promotion_id}; promote again to get a name of its own"
                        )
                    return known
            if isinstance(row, TableForecastRow):
                row = _beside_others(row, Reading(lines))
            self._append(row, lines)
        return row

    def record_outcome(self, row: Outcome) -> Outcome:
        """Append the outcome of a registered forecast, or return the one already there.

        A measured outcome is appended to one in doubt, and takes its place.
        """
        with self._locked() as lines:
            registered = False
            for line in lines:
                if line.promotion_id != row.promotion_id:
                    continue
                self._refuse_altered(line)
                known = line.row if isinstance(line.row, Outcome) else None
                if known is not None and not outdoes(row, known):
                    return known
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
        """The entry of one forecast, as the file stands now."""
        return self.read().find(promotion_id)

    def entry(self, promotion_id: str) -> Entry:
        """The entry of a forecast that the caller has registered.

        Raises:
            ConfigError: it has gone from the file since.
        """
        entry = self.find(promotion_id)
        if entry is None:
            raise ConfigError(f"{self.path}: the forecast of {promotion_id} is gone")
        return entry

    def lines(self) -> tuple[Line, ...]:
        """Every line, read back and checked against the chain of hashes.

        Raises:
            ConfigError: it is a link that leads to no file.
        """
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            if self.path.is_symlink():  # of a disk that is not here now: what it holds is not lost
                raise ConfigError(
                    f"{self.path}: a link to {os.readlink(self.path)}, where there is no file now; "
                    "bring that back (a disk not mounted?), or remove the link to begin a new "
                    "ledger"
                ) from None
            return ()
        return _check_chain(text)

    def _refuse_altered(self, line: Line) -> None:
        if line.trouble:
            raise ConfigError(
                f"{self.path}: line {line.number}: {line.trouble}; put the line back as it was"
            )

    @contextmanager
    def _locked(self) -> Iterator[tuple[Line, ...]]:
        """Hold the file against other commands."""
        durable_folder(self.path.parent)
        with alone(self.path.with_name(self.path.name + ".lock")):
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


def ledger_of(root: Path) -> Ledger:
    """The ledger of a root: one for all its sweeps and tables."""
    return Ledger(root / "ledger.jsonl")


def _beside_others(row: TableForecastRow, known: Reading) -> TableForecastRow:
    """The row with what the ledger knows of the same run."""
    same = [entry for entry in known.entries if entry.forecast.run_id == row.run_id]
    return replace(
        row,
        earlier=same[-1].name if same else "",
        after_the_fact=row.after_the_fact or any(entry.outcome is not None for entry in same),
    )


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
