"""Fit laws to a sweep or to any table of runs: coefficients, intervals, hold-out, warnings.

L(N, D) = E + A/N^alpha + B/D^beta over all runs and L(C) along its compute-optimal frontier, or any
other law by its name (law=...), written to fit.json. The exit code is 2 for runs or columns that
can't be used, 3 when no estimate exists.

Example:
  windtunnel fit sweep=quickstart
  windtunnel fit records=runs.csv columns.params=N columns.tokens=D columns.loss=L
  windtunnel fit sweep=quickstart sensitivity=true laws=[hoffmann,gadre]
  windtunnel fit sweep=quickstart loss=domain:code
  windtunnel fit records=runs.csv columns.params=N columns.flops=C columns.loss=L \\
      table.drop_highest_losses=5 fit.huber_delta=1e-3 at_flops=5.76e23
  windtunnel fit records=runs.csv law=compute columns.flops=C columns.loss=L at.flops=1e22
  windtunnel fit records=runs.csv law=krajewski columns.params=N columns.tokens=D \\
      columns.loss=L variables.granularity=G test.budget=1e21
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console

from analysis.asked import forecast_at, forecast_rows
from analysis.catalogue import LAWS
from analysis.exclusion import Exclusion
from analysis.judging import compare_laws
from analysis.law_study import LawStudy, make_law_study
from analysis.law_summary import summarise_law
from analysis.measured import WHOLE, measured_as
from analysis.one_protocol import check_one_protocol
from analysis.optima_study import PROCEDURES, OptimaStudy, Procedure, make_optima_study
from analysis.optima_summary import summarise_optima
from analysis.points import Points, SizeVariable, points_from_records
from analysis.records import RecordSet, RunRecord, load_records
from analysis.sensitivity import examine_choices
from analysis.settings import FitSettings
from analysis.study import Study, make_study
from analysis.summary import AHEAD
from analysis.tables import Columns, TableRules, load_table
from analysis.units import check_falls
from analysis.utilisation import utilisation_laws
from model.config import require
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.plan import Plan, as_planned
from sweeps.store import Store
from windtunnel.commands.status import known_plan, sweep_names
from windtunnel.features import variants_in
from windtunnel.next_step import as_option

SURFACE = "hoffmann"
"""The law that recommends a model."""
ONE_VARIANT = {"size", "tokens", "flops", "tokens_per_size"}
"""A law of these alone describes one variant of a sweep; others, what differs between variants."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/fit.yaml``."""

    root: Path
    sweep: str | None
    records: Path | None
    columns: Columns
    variables: dict[str, str]
    filter: dict[str, Any]
    exclude: dict[str, Any]
    test: dict[str, Any]
    table: TableRules
    size: SizeVariable
    variant: dict[str, Any]
    loss: str
    allow: tuple[str, ...]
    fit: FitSettings
    law: str
    laws: tuple[str, ...]
    at_flops: float | None
    at: dict[str, float]
    sensitivity: bool
    out: Path | None

    def __post_init__(self) -> None:
        require(
            self.at_flops is None or self.at_flops > 0,
            f"at_flops must be positive, got {self.at_flops}",
        )


def run(config: Config, console: Console) -> int:
    """Fit, print one screen, write ``fit.json``."""
    _check_law(config)
    runs = _runs(config)
    study: Study | LawStudy | OptimaStudy
    if config.law in PROCEDURES:
        study = make_optima_study(
            runs.name,
            cast(Procedure, config.law),
            runs.points,
            runs.exclusions,
            config.fit,
            at=config.at,
            source=runs.source,
        )
        text = summarise_optima(study)
    elif config.law != SURFACE:
        study = _law_study(config, runs)
        text = summarise_law(study)
    else:
        study = _surface_study(config, runs)
        text = study.summary(flops=config.at_flops)
    console.print(text, markup=False, end="", soft_wrap=True)
    study.save(runs.out)
    console.print(f"  {'written':<12}{runs.out}", markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """What is fitted, where it came from, where the fit goes."""

    name: str
    points: Points
    exclusions: tuple[Exclusion, ...]
    out: Path
    source: dict[str, Any]
    test: Points | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    fingerprints: tuple[str, ...] = ()
    convention: str = ""
    records: tuple[RunRecord, ...] = ()


def _check_law(config: Config) -> None:
    if config.law not in (*LAWS, *PROCEDURES):
        raise ConfigError(
            f"law={config.law}: no such law. There are: {', '.join((*LAWS, *PROCEDURES))}"
        )
    if config.law != SURFACE:
        for option, given in (("at_flops", config.at_flops), ("sensitivity", config.sensitivity)):
            if given:
                raise ConfigError(
                    f"{option} is about the optimum of law={SURFACE}; law={config.law} forecasts "
                    "with at.VARIABLE=VALUE"
                )
    if config.law in PROCEDURES and (config.test or config.laws):
        raise ConfigError(f"law={config.law} finds optima; test and laws are for the others")


def _surface_study(config: Config, runs: _Runs) -> Study:
    study = make_study(
        runs.name,
        runs.points,
        runs.exclusions,
        config.fit,
        protocol=runs.protocol,
        protocol_fingerprints=runs.fingerprints,
        convention=runs.convention,
        source=runs.source,
    )
    study = replace(study, utilisation=utilisation_laws(runs.records, config.fit))
    level = config.fit.level
    if runs.test is not None:
        study = replace(study, tests=forecast_rows(study.surface, runs.test, level))
    if config.at:
        asked = forecast_at(study.surface, runs.points, config.at, level)
        study = replace(study, forecasts=(asked,))
    if config.laws:
        comparison = compare_laws(study.points, config.laws, config.fit)
        study = replace(study, comparison=comparison)
    return _with_sensitivity(config, study) if config.sensitivity else study


def _law_study(config: Config, runs: _Runs) -> LawStudy:
    study = make_law_study(
        runs.name,
        config.law,
        runs.points,
        runs.exclusions,
        config.fit,
        test=runs.test,
        at=config.at,
        protocol=runs.protocol,
        source=runs.source,
    )
    if config.laws:
        comparison = compare_laws(runs.points, config.laws, config.fit)
        study = replace(study, comparison=comparison)
    return study


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


def _runs(config: Config) -> _Runs:
    if (config.sweep is None) == (config.records is None):
        names = ", ".join(sweep_names(Store(config.root))) or "none"
        raise ConfigError(
            "name what to fit: sweep=NAME or records=FILE, one of the two. "
            f"Sweeps under {config.root}: {names}"
        )
    if config.records is not None and not config.records.is_dir():
        return _of_table(config, config.records)
    for option in ("test", "filter", "exclude"):
        given = getattr(config, option)
        if given:
            raise ConfigError(f"{option} chooses rows of a table; for a sweep use variant")
    if config.records is not None:
        name, records = config.records.name, _of_folder(config.records)
        out = config.out or config.root / "fits" / name / "fit.json"
        source: dict[str, Any] = {"folder": str(config.records), "loss": config.loss}
    else:
        assert config.sweep is not None
        store = Store(config.root)
        plan = known_plan(store, config.sweep)
        name, records = plan.name, _of_sweep(plan, store, config.variant, law=config.law)
        beside = "_".join(
            ["fit", *([config.law] if config.law != SURFACE else []), *_not_whole(config.loss)]
        )
        out = config.out or store.plan_path(plan.name).with_name(f"{beside}.json")
        source = {"sweep": plan.name, "variant": config.variant, "loss": config.loss}
    return _of_records(config, name, records, source, out)


def _of_table(config: Config, path: Path) -> _Runs:
    require(
        config.loss == WHOLE,
        f"loss: {config.loss!r} is for runs of a sweep; name a table's column with columns.loss",
    )
    rules = replace(config.table, filter=config.filter, exclude=config.exclude, test=config.test)
    columns = replace(config.columns, variables=config.variables)
    loaded = load_table(path, columns, rules)
    if config.law == SURFACE and not (loaded.points.size and loaded.points.tokens):
        given = "FLOPs" if loaded.points.flops else "sizes" if loaded.points.size else "tokens"
        other = {"FLOPs": "compute", "sizes": "size", "tokens": "tokens"}[given]
        lacking = "columns.tokens or columns.flops" if given == "sizes" else "columns.params"
        raise ConfigError(
            f"{lacking}: missing; law={SURFACE} describes size and tokens. With {given} alone fit "
            f"law={other}"
        )
    if rules.check_units and config.law != "power":
        check_falls(loaded.points, str(path))
    source = {
        "table": str(path),
        "columns": to_plain(columns),
        "rules": to_plain(rules),
    }
    stem = path.name.split(".")[0]
    return _Runs(
        name=str(path),
        points=loaded.points,
        exclusions=loaded.excluded,
        test=loaded.test,
        out=config.out or config.root / "fits" / stem / "fit.json",
        source=source,
    )


def _of_records(
    config: Config, name: str, records: RecordSet, source: dict[str, Any], out: Path
) -> _Runs:
    points, excluded = points_from_records(measured_as(records, config.loss), config.size)
    used = [record for record in records.records if record.run_id in set(points.label)]
    check_one_protocol(used, config.allow)
    conventions = sorted({record.convention for record in used})
    if len(conventions) > 1:
        raise ConfigError(
            f"the runs count FLOPs and parameters by different conventions: "
            f"{', '.join(conventions)}; they can't be fitted together"
        )
    return _Runs(
        name=name,
        points=points,
        exclusions=excluded,
        out=out,
        source=source,
        protocol=used[0].protocol,
        fingerprints=tuple(sorted({record.protocol_fingerprint for record in used})),
        convention=conventions[0],
        records=tuple(used),
    )


def _not_whole(loss: str) -> list[str]:
    """A part of a file's name, where the fit is of another loss than a promotion goes by."""
    return [] if loss == WHOLE else [re.sub(r"\W+", "_", loss)]


def _of_folder(folder: Path) -> RecordSet:
    dirs = sorted(path.parent for path in folder.glob("*/record.json"))
    if not dirs:
        raise ConfigError(f"{folder}: holds no runs (no */record.json)")
    return load_records(dirs)


def _of_sweep(plan: Plan, store: Store, variant: Mapping[str, Any], *, law: str) -> RecordSet:
    """The sweep's records; every run of the plan that has none is an exclusion with its state."""
    chosen = [
        run
        for run in plan.measured
        if all(run.variant.get(key) == value for key, value in variant.items())
    ]
    variants = variants_in(chosen)
    over_variants = law in PROCEDURES or not set(LAWS[law].VARIABLES) <= ONE_VARIANT
    if not variants or (len(variants) > 1 and not over_variants):
        known = variants or variants_in(plan.measured)
        shown = [as_option("variant", each) for each in known.values()]
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        raise ConfigError(
            f"sweep={plan.name} holds {len(variants)} variants along its axes that match "
            f"{as_option('variant', variant)}; a fit is of one: {' or '.join(shown[:4])}{more}"
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
