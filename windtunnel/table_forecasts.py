"""A forecast of a table's law as the ledger keeps it: made before the run exists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from analysis.asked import everything_at
from analysis.catalogue import LAWS
from analysis.law_study import LawStudy
from analysis.results import Fit, Prediction
from analysis.study import Study
from analysis.wording import level_text
from model.config import require
from model.typed import to_plain
from sweeps.files import content_hash
from windtunnel import gates
from windtunnel.gates import GateResult, GateThresholds
from windtunnel.ledger import utc_now
from windtunnel.ledger_rows import FittedTable, Forecast, TableForecastRow
from windtunnel.table_runs import (
    SAME_PLACE,
    FoundRun,
    find_run,
    place_text,
    read_again,
    row_digests,
    unchanged,
)

OF_NO_LOSS = ("power", "downstream")
"""Laws of something else than a loss in nats per token, which the ledger keeps."""


def check_registrable(law: str, records: Path | None, at: Mapping[str, float]) -> None:
    """Refuse what can't be registered, before anything is fitted.

    Raises:
        ConfigError: no table, no place, or a law of no loss.
    """
    require(
        records is not None and not records.is_dir(),
        "register: is for the law of a table; a sweep's forecast is registered by `windtunnel "
        "launch` of what `windtunnel promote` recommends",
    )
    require(
        law in LAWS and law not in OF_NO_LOSS,
        f"register: law={law} does not forecast a loss in nats per token, which the ledger keeps",
    )
    require(
        bool(at),
        "register: say which run is forecast, e.g. at.params=7e9 at.tokens=2e12, or one of the two "
        "and at.flops",
    )


def table_forecast(
    study: Study | LawStudy, law_name: str, at: Mapping[str, float], thresholds: GateThresholds
) -> tuple[TableForecastRow, FoundRun | None]:
    """The ledger's row of the forecast that ``study`` was asked for, and the run if it is there.

    Raises:
        ConfigError: the table was written since it was fitted.
    """
    fit = study.surface if isinstance(study, Study) else study.fit
    law = LAWS[law_name]
    asked = study.forecasts[0]
    place = {name: float(f"{value:.10g}") for name, value in asked.at.items()}
    path = Path(study.source["table"])
    options = {
        "columns": study.source["columns"],
        "rules": study.source["rules"],
        "fit": to_plain(study.settings),
    }
    with unchanged(path, study.source["sha256"]) as sha256:
        found = find_run(read_again(path, options).points, law, place, SAME_PLACE)
    results = _gates(study, fit, asked.forecast, at, thresholds)
    asked_for = {"sha256": sha256, "law": law_name, "at": place, **options}
    content_id = content_hash(asked_for, digits=64)
    table = FittedTable(
        path=str(path),
        sha256=sha256,
        num_rows=len(study.points) + len(study.exclusions),
        fitted_rows=row_digests(study.points, law),
    )
    # A link's target names it: the link may lead elsewhere tomorrow.
    stem = path.resolve().name.split(".")[0]
    row = TableForecastRow(
        promotion_id=f"{stem}-{content_id[:8]}",
        content_id=content_id,
        run_id=f"{stem} at {place_text(place)}",
        registered_at=utc_now(),
        at=place,
        train_flops=everything_at(law, study.points, at).get("flops"),
        forecast=asked.forecast,
        law=law_name,
        coefficients=fit.coefficients,
        warnings=fit.warnings,
        passed_gates={gate.name: gate.sentence for gate in results if gate.passed},
        failed_gates={gate.name: gate.sentence for gate in results if not gate.passed},
        table=table,
        options=options,
        software=study.software,
        after_the_fact=found is not None,
    )
    return row, found


def _gates(
    study: Study | LawStudy,
    fit: Fit,
    forecast: Prediction,
    at: Mapping[str, float],
    thresholds: GateThresholds,
) -> tuple[GateResult, ...]:
    """Those of a launch that a table can be asked about."""
    known = everything_at(type(fit.law), study.points, at)
    largest = {
        name: max(column) for name in ("size", "tokens") if (column := getattr(study.points, name))
    }
    beyond = {name: known[name] / most for name, most in largest.items() if name in known}
    return (
        gates.holdout_gate(study.holdouts, thresholds),
        gates.width_gate(forecast, thresholds),
        gates.extrapolation_gate({"compute": forecast.extrapolation_ratio, **beyond}, thresholds),
        gates.health_gate(fit.warnings, thresholds),
        gates.noise_gate(study.noise, thresholds),
    )


def registered_text(
    row: TableForecastRow,
    found: FoundRun | None,
    earlier: Forecast | None,
    *,
    is_new: bool,
) -> list[str]:
    """What was registered and what to know of it, a paragraph each.

    Args:
        row: as the ledger has it.
        found: the run, where the table has it already.
        earlier: the forecast of the same run before this one.
        is_new: whether it was registered just now.
    """
    when = "Registered" if is_new else f"Registered before, on {row.registered_at}, and stands:"
    forecast = row.forecast
    said = [
        f"{when} {row.promotion_id}: {forecast.value:.4f} nats, "
        f"{level_text(forecast.level)} interval {forecast.low:.4f} to {forecast.high:.4f}, "
        f"at {place_text(row.at)}"
    ]
    if row.failed_gates:
        said.append(
            f"On record with it: a launch would be refused by {', '.join(row.failed_gates)}"
        )
    if isinstance(earlier, TableForecastRow):
        said.append(f"{revised_text(row, earlier)}; both stand, and each is held to its own")
    if found is not None:
        said.append(
            f"! {found.row} of the table is that run, measured ({found.loss_nats:.4f}): registered "
            "after the fact, so it never counts"
        )
    elif row.after_the_fact:
        said.append("! The run's outcome was known: registered after the fact, so it never counts")
    return said


def revised_text(row: TableForecastRow, earlier: TableForecastRow) -> str:
    """Which forecast of the same run was registered before, and what has changed since."""
    changes = []
    if row.table.sha256 != earlier.table.sha256:
        before, now = earlier.table, row.table
        rows = f"{before.num_rows} rows" + (
            f", now {now.num_rows}" if now.num_rows != before.num_rows else " then as now"
        )
        changes.append(f"from another content of the table ({rows})")
    if row.law != earlier.law:
        changes.append(f"by law={earlier.law}")
    elif row.options != earlier.options:
        changes.append("by other options of the fit")
    return f"{earlier.promotion_id} forecast the same run before, {' and '.join(changes)}"
