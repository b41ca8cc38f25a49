"""The ledger's answer to a script."""

from __future__ import annotations

from typing import Any

from windtunnel.calibration import Calibration, calibration
from windtunnel.ledger import Ledger, Reading
from windtunnel.ledger_rows import Entry, Outcome, OutcomeRow, TableForecastRow, TableOutcomeRow


def ledger_answer(ledger: Ledger, read: Reading, differing: tuple[str, ...]) -> dict[str, Any]:
    """Every forecast with its outcome, what they say of the intervals, and what is wrong.

    Args:
        ledger: whose file it is.
        read: its lines.
        differing: forecasts that are not their promotion's.
    """
    return {
        "path": ledger.path,
        "is_damaged": bool(differing) or read.is_damaged,
        "problems": [*read.problems, *differing],
        "forecasts": [entry_answer(entry) for entry in read.entries],
        "calibration": _calibration(calibration(read.entries)),
    }


def entry_answer(entry: Entry) -> dict[str, Any]:
    """One forecast and what became of it."""
    row = entry.forecast
    return {
        "name": entry.name,
        "from_a": entry.kind,
        "evidence": row.evidence,
        "run_id": row.run_id,
        "target": None if isinstance(row, TableForecastRow) else row.target,
        "law": row.law if isinstance(row, TableForecastRow) else None,
        "at": row.at if isinstance(row, TableForecastRow) else None,
        "train_flops": row.train_flops,
        "registered_at": row.registered_at,
        "forecast_nats": row.forecast,
        "after_the_fact": row.after_the_fact,
        "failed_gates": row.failed_gates if isinstance(row, TableForecastRow) else row.overrides,
        "earlier": (row.earlier or None) if isinstance(row, TableForecastRow) else None,
        "verdict": entry.verdict,
        "is_evidence": entry.counts,
        "trouble": entry.trouble,
        "outcome": None if entry.outcome is None else _outcome(entry.outcome),
    }


def _outcome(row: Outcome) -> dict[str, Any]:
    stated_by = row.stated_by if isinstance(row, OutcomeRow) else ""
    return {
        "status": row.status,
        "reason": row.reason if isinstance(row, OutcomeRow) else "",
        "loss_nats": row.loss_nats,
        "is_inside": row.inside,
        "doubt": row.doubt,
        "stated_by": stated_by,
        "table_row": row.row if isinstance(row, TableOutcomeRow) else None,
        "recorded_at": row.recorded_at,
    }


def _calibration(found: Calibration) -> dict[str, Any]:
    return {
        "num_forecasts": found.num_forecasts,
        "num_inside": found.num_inside,
        "num_expected_inside": found.num_expected,
        "num_runs": found.num_runs,
        "by_kind": {
            kind: {"num_inside": inside, "num_forecasts": of}
            for kind, (inside, of) in found.by_kind.items()
        },
        "hit_rate": found.hit_rate,
        "p_value": found.chance,
        "median_abs_error_frac": found.median_error,
        "median_offset_frac": found.median_offset,
        "num_below": found.num_below,
        "num_above": found.num_above,
        "sides_p_value": found.side_chance,
        "median_width_frac": found.median_width,
    }
