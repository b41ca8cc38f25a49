"""The table of runs, a window at a time: sorted and filtered here, so 10,000 runs stay quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from windtunnel.report.content import RunRow

Value = str | float | None
Line = list[Value]

# Status and loss beside the name: a phone shows three columns without a scroll to the side.
COLUMNS: Mapping[str, Callable[[RunRow], Value]] = {
    "run": lambda row: row.run_id,
    "status": lambda row: row.status,
    "loss": lambda row: row.record.loss_nats if row.record else None,
    "size": lambda row: row.rung,
    "role": lambda row: row.role,
    "variant": lambda row: row.variant,
    "bits_per_byte": lambda row: row.record.bits_per_byte if row.record else None,
    "flops_per_token": lambda row: row.flops_per_token,
    "tokens": lambda row: row.tokens,
    "flops": lambda row: row.train_flops,
    "peak_lr": lambda row: row.peak_lr,
    "batch": lambda row: row.batch_tokens,
    "seed": lambda row: row.seed,
    "max_vio": lambda row: row.max_vio,
    "wall_s": lambda row: row.record.wall_s if row.record else None,
    "fit": lambda row: f"{row.use}. {row.reason}" if row.reason else row.use,
}
MOST_ROWS = 200
SORTS_KEPT = 16
"""Readers scroll through one order at a time, and there are few readers."""


@dataclass(frozen=True)
class Question:
    """An order and a filter; without ``sort`` the ladder's order."""

    sort: str = ""
    falling: bool = False
    words: str = ""


class RunTable:
    """All rows of a sweep; a reader who scrolls asks for window after window of one order."""

    def __init__(self, rows: Sequence[RunRow]) -> None:
        self.rows = tuple(rows)
        has_variants = any(row.variant for row in rows)
        self.columns = [name for name in COLUMNS if name != "variant" or has_variants]
        self._orders: dict[Question, list[int]] = {}
        # Made here, by the thread that watches, and not while a reader waits.
        self._lines: list[Line] = [[COLUMNS[name](row) for name in self.columns] for row in rows]
        self._texts = [
            f"{r.run_id} {r.rung} {r.role} {r.variant} {r.status} {r.use} {r.reason}".lower()
            for r in rows
        ]
        self._ids = frozenset(row.run_id for row in rows)

    def window(self, question: Question, *, first: int = 0, count: int = 50) -> dict[str, Any]:
        """Rows ``first`` and on that hold all words asked for, as plain values."""
        order = self._order(question)
        first = max(0, first)
        shown = order[first : first + min(max(1, count), MOST_ROWS)]
        return {
            "columns": self.columns,
            "total": len(self.rows),
            "found": len(order),
            "first": first,
            "rows": [self._lines[index] for index in shown],
        }

    def holds(self, run_id: str) -> bool:
        """Whether it is a run of this sweep."""
        return run_id in self._ids

    def _order(self, question: Question) -> list[int]:
        found = self._orders.get(question)
        if found is None:
            found = self._sorted(question)
            if len(self._orders) >= SORTS_KEPT:
                self._orders.clear()
            self._orders[question] = found
        return found

    def _sorted(self, question: Question) -> list[int]:
        """Row numbers; what is absent comes last in either direction, as in the report's table."""
        words = question.words.lower().split()
        found = [
            index
            for index in range(len(self.rows))
            if not words or all(word in self._texts[index] for word in words)
        ]
        if question.sort not in self.columns:
            return found
        column = self.columns.index(question.sort)
        absent = [index for index in found if self._lines[index][column] is None]
        present = [index for index in found if self._lines[index][column] is not None]
        present.sort(key=lambda i: self._lines[i][column], reverse=question.falling)  # type: ignore[arg-type,return-value]
        return present + absent
