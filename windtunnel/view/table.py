"""The table of runs, a page at a time: sorted and filtered here, so that 10,000 runs stay quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from windtunnel.report.content import RunRow

Value = str | float | None

COLUMNS: Mapping[str, Callable[[RunRow], Value]] = {
    "run": lambda row: row.run_id,
    "size": lambda row: row.rung,
    "role": lambda row: row.role,
    "variant": lambda row: row.variant,
    "status": lambda row: row.status,
    "loss": lambda row: row.record.loss_nats if row.record else None,
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


def page_of_rows(
    rows: Sequence[RunRow],
    *,
    sort: str = "",
    falling: bool = False,
    words: str = "",
    first: int = 0,
    count: int = 50,
) -> dict[str, Any]:
    """Rows ``first`` and on that hold all ``words``; without ``sort`` in the ladder's order.

    What is absent comes last in either direction, as in the report's table.
    """
    wanted = words.lower().split()
    found = [row for row in rows if _holds(row, wanted)] if wanted else list(rows)
    value = COLUMNS.get(sort)
    if value is not None:
        absent = [row for row in found if value(row) is None]
        found = [row for row in found if value(row) is not None]
        found.sort(key=lambda row: value(row), reverse=falling)  # type: ignore[arg-type,return-value]
        found += absent
    first = max(0, first)
    shown = found[first : first + min(max(1, count), MOST_ROWS)]
    columns = {
        name: value
        for name, value in COLUMNS.items()
        if name != "variant" or any(row.variant for row in rows)
    }
    return {
        "columns": list(columns),
        "total": len(rows),
        "found": len(found),
        "first": first,
        "rows": [[value(row) for value in columns.values()] for row in shown],
    }


def _holds(row: RunRow, words: Sequence[str]) -> bool:
    text = f"{row.run_id} {row.rung} {row.role} {row.variant} {row.status} {row.use} {row.reason}"
    text = text.lower()
    return all(word in text for word in words)
