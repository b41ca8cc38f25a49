"""Fit laws to a sweep or to any table of runs: coefficients, intervals, hold-out, warnings.

L(N, D) = E + A/N^alpha + B/D^beta over all runs and L(C) along its compute-optimal frontier,
written to fit.json. The exit code is 2 for runs or columns that can't be used, 3 when no estimate
exists.

Example:
  windtunnel fit sweep=quickstart
  windtunnel fit records=runs.csv columns.params=N columns.tokens=D columns.loss=L
  windtunnel fit sweep=quickstart sensitivity=true laws=[hoffmann,gadre]
  windtunnel fit records=runs.csv columns.params=N columns.flops=C columns.loss=L \\
      table.drop_highest_losses=5 fit.huber_delta=1e-3 at_flops=5.76e23
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from analysis.judging import compare_laws
from analysis.points import Points, SizeVariable, points_from_records
from analysis.records import RecordSet, check_one_protocol, load_records
from analysis.results import Exclusion
from analysis.sensitivity import examine_choices
from analysis.settings import FitSettings
from analysis.study import Study, make_study
from analysis.summary import AHEAD
from analysis.tables import Columns, TableRules, points_from_table
from model.config import require
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.plan import Plan, as_planned
from sweeps.store import Store
from windtunnel.commands.status import known_plan, sweep_names


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/fit.yaml``."""

    root: Path
    sweep: str | None
    records: Path | None
    columns: Columns
    variables: dict[str, str]
    filter: dict[str, Any]
    table: TableRules
    size: SizeVariable
    variant: dict[str, Any]
    allow_mixed_protocols: bool
    fit: FitSettings
    laws: tuple[str, ...]
    at_flops: float | None
    sensitivity: bool
    out: Path | None

    def __post_init__(self) -> None:
        require(
            self.at_flops is None or self.at_flops > 0,
            f"at_flops must be positive, got {self.at_flops}",
        )


def run(config: Config, console: Console) -> int:
    """Fit, print one screen, write ``fit.json``."""
    study, out = _study(config)
    if config.laws:
        comparison = compare_laws(study.points, config.laws, config.fit)
        study = replace(study, comparison=comparison)
    if config.sensitivity:
        study = _with_sensitivity(config, study)
    console.print(study.summary(flops=config.at_flops), markup=False, end="", soft_wrap=True)
    study.save(out)
    console.print(f"  {'written':<12}{out}", markup=False, soft_wrap=True)
    return 0


def _with_sensitivity(config: Config, study: Study) -> Study:
    flops = config.at_flops or AHEAD * study.surface.largest_compute
    other_sizes: dict[str, Points] = {}
    if study.points.size_variable in get_args(SizeVariable):
        other_sizes = {
            name: replace(study.points, size_variable=name, size=study.points.extra[name])
            for name in ("active_params", "active_non_embedding_params", "total_params")
            if name in study.points.extra and name != study.points.size_variable
        }
    found = examine_choices(study.points, config.fit, flops, other_sizes)
    return replace(study, sensitivity=found)


def _study(config: Config) -> tuple[Study, Path]:
    if (config.sweep is None) == (config.records is None):
        names = ", ".join(sweep_names(Store(config.root))) or "none"
        raise ConfigError(
            "name what to fit: sweep=NAME or records=FILE, one of the two. "
            f"Sweeps under {config.root}: {names}"
        )
    if config.records is not None and not config.records.is_dir():
        return _of_table(config, config.records)
    if config.records is not None:
        name, records = config.records.name, _of_folder(config.records)
        out = config.out or config.root / "fits" / name / "fit.json"
        source: dict[str, Any] = {"folder": str(config.records)}
    else:
        assert config.sweep is not None
        store = Store(config.root)
        plan = known_plan(store, config.sweep)
        name, records = plan.name, _of_sweep(plan, store, config.variant)
        out = config.out or store.plan_path(plan.name).with_name("fit.json")
        source = {"sweep": plan.name, "variant": config.variant}
    return _of_records(config, name, records, source), out


def _of_table(config: Config, path: Path) -> tuple[Study, Path]:
    rules = replace(config.table, filter=config.filter)
    columns = replace(config.columns, variables=config.variables)
    points, excluded = points_from_table(path, columns, rules)
    source = {
        "table": str(path),
        "columns": to_plain(columns),
        "rules": to_plain(rules),
    }
    study = make_study(str(path), points, excluded, config.fit, source=source)
    stem = path.name.split(".")[0]
    return study, config.out or config.root / "fits" / stem / "fit.json"


def _of_records(config: Config, name: str, records: RecordSet, source: Mapping[str, Any]) -> Study:
    points, excluded = points_from_records(records, config.size)
    used = [record for record in records.records if record.run_id in set(points.label)]
    if not config.allow_mixed_protocols:
        check_one_protocol(used)
    conventions = sorted({record.convention for record in used})
    if len(conventions) > 1:
        raise ConfigError(
            f"the runs count FLOPs and parameters by different conventions: "
            f"{', '.join(conventions)}; they can't be fitted together"
        )
    return make_study(
        name,
        points,
        excluded,
        config.fit,
        protocol=used[0].protocol,
        protocol_fingerprints=tuple(sorted({record.protocol_fingerprint for record in used})),
        convention=conventions[0],
        source=dict(source),
    )


def _of_folder(folder: Path) -> RecordSet:
    dirs = sorted(path.parent for path in folder.glob("*/record.json"))
    if not dirs:
        raise ConfigError(f"{folder}: holds no runs (no */record.json)")
    return load_records(dirs)


def _of_sweep(plan: Plan, store: Store, variant: Mapping[str, Any]) -> RecordSet:
    """The sweep's records; every run of the plan that has none is an exclusion with its state."""
    chosen = [
        run
        for run in plan.measured
        if all(run.variant.get(key) == value for key, value in variant.items())
    ]
    variants = {str(run.variant): run.variant for run in chosen}
    if len(variants) != 1:
        shown = ", ".join(
            list(variants)[:4] or sorted({str(run.variant) for run in plan.measured})[:4]
        )
        raise ConfigError(
            f"sweep={plan.name} holds {len(variants)} variants along its axes "
            f"that match variant={dict(variant)}; choose one: variant={{...}}. There are: {shown}"
        )
    finished = [run for run in chosen if (store.run_dir(run.run_id) / "record.json").exists()]
    done = [run.run_id for run in finished]
    loaded = load_records(store.run_dir(name) for name in done)
    missing = tuple(_missing(store, [run.run_id for run in chosen if run.run_id not in done]))
    if not loaded.records:
        reasons = "; ".join(f"{e.label}: {e.reason}" for e in (*loaded.excluded, *missing)[:2])
        raise ConfigError(
            f"sweep={plan.name}: none of its {len(chosen)} runs can be fitted ({reasons}, ...). "
            f"See `windtunnel status sweep={plan.name}`"
        )
    named = {run.run_id: run for run in finished}
    records = tuple(as_planned(record, named[record.run_id]) for record in loaded.records)
    return RecordSet(records=records, excluded=(*loaded.excluded, *missing))


def _missing(store: Store, names: list[str]) -> Iterator[Exclusion]:
    for name in names:
        state = store.state(name)
        reason = f"{state.status}: {state.reason}" if state.reason else state.status
        yield Exclusion(label=name, reason=reason)
