"""Under what protocol the runs were made, and where, when and by what: rows of a name and a value.

Every nested field is a row. Where the runs differ, the row says how many have which value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from analysis.records import RunRecord
from analysis.study import Study
from analysis.wording import counted

TIMES = ("started", "ended")
"""Fields of the provenance that hold seconds since 1970."""


def protocol_rows(records: Iterable[RunRecord], study: Study | None) -> tuple[tuple[str, str], ...]:
    """What the runs share, one line a value; where protocols differ, how many runs have which."""
    records = tuple(records)
    runs = Counter(record.protocol_fingerprint for record in records)
    protocols = {record.protocol_fingerprint: record.protocol for record in records}
    if not protocols and study is not None:
        protocols = {", ".join(study.protocol_fingerprints): study.protocol}
    seen: dict[str, Counter[str]] = {}
    for fingerprint, protocol in protocols.items():
        for name, value in flat({"fingerprint": fingerprint, **protocol}):
            seen.setdefault(name, Counter())[value] += runs[fingerprint]
    return tuple((name, _values(counter, most=12)) for name, counter in seen.items())


def provenance_rows(records: Iterable[RunRecord]) -> tuple[tuple[str, str], ...]:
    """Every provenance field with its values and how many runs had each."""
    records = tuple(records)
    seen: dict[str, Counter[str]] = {}
    for record in records:
        for name, value in flat({**record.provenance, **_one_line_each(record)}):
            seen.setdefault(name, Counter())[value] += 1
    rows = [(name, _values(counter)) for name, counter in seen.items() if name not in TIMES]
    return (*rows, *_time_span(records))


def _one_line_each(record: RunRecord) -> dict[str, str]:
    """Lists that are long or differ in every run, as what a reader compares."""
    attempts = record.provenance.get("attempts")
    command = record.provenance.get("command")
    lines = {}
    if isinstance(attempts, list):
        lines["attempts"] = str(len(attempts))
    if isinstance(command, list):
        lines["command"] = " ".join(str(word) for word in command).replace(record.run_id, "RUN")
    return lines


def _time_span(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """When the first run started and the last one ended, in UTC."""
    rows = []
    for name, pick, label in (("started", min, "first start"), ("ended", max, "last end")):
        times = [record.provenance.get(name) for record in records]
        seconds = [time for time in times if isinstance(time, (int, float))]
        if seconds:
            moment = datetime.fromtimestamp(pick(seconds), UTC)
            rows.append((label, moment.strftime("%Y-%m-%d %H:%M UTC")))
    return rows


def _values(counter: Counter[str], most: int = 4) -> str:
    if len(counter) == 1:
        return next(iter(counter))
    numbers = [_number(value) for value in counter]
    is_each_its_own = max(counter.values()) == 1  # seconds, epochs: their range says more
    if (len(counter) > most or is_each_its_own) and None not in numbers:
        known = [number for number in numbers if number is not None]
        return f"{min(known):.4g} to {max(known):.4g}"
    listed = [
        f"{value} ({counted(count, 'run', 'runs')})" for value, count in counter.most_common(most)
    ]
    rest = len(counter) - len(listed)
    return ", ".join(listed) + (
        f", and {counted(rest, 'other value', 'other values')}" if rest else ""
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (dotted path, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            rows.append((f"{prefix}{key}", ", ".join(str(item) for item in value) or "none"))
        elif isinstance(value, float):
            rows.append((f"{prefix}{key}", f"{value:.6g}"))
        else:
            rows.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return rows
