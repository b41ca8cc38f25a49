"""Which runs a law is fitted to: those of a sweep, of a folder, or the rows of a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.catalogue import LAWS
from analysis.exclusion import Exclusion
from analysis.measured import WHOLE, measured_as
from analysis.one_protocol import check_one_protocol
from analysis.optima_study import PROCEDURES
from analysis.points import Points, SizeVariable, points_from_records
from analysis.records import RecordSet, RunRecord, load_records
from analysis.table_options import Columns, TableRules
from analysis.tables import load_table
from analysis.units import check_falls
from analysis.wording import counted
from model.config import require
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.plan import Plan, as_planned
from sweeps.store import Store
from windtunnel.commands.status import known_plan, sweep_names
from windtunnel.features import variants_in
from windtunnel.next_step import as_option
from windtunnel.quoting import under
from windtunnel.table_runs import unchanged

SURFACE = "hoffmann"
"""The law that recommends a model."""
ONE_VARIANT = {"size", "tokens", "flops", "tokens_per_size"}
"""A law of these alone describes one variant of a sweep; others, what differs between variants."""


@dataclass(frozen=True, kw_only=True)
class FitSource:
    """What is fitted, and by which law: it decides which columns and variants are needed."""

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
    law: str
    out: Path | None


@dataclass(frozen=True, kw_only=True)
class RunsToFit:
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


def runs_to_fit(config: FitSource) -> RunsToFit:
    """Read them.

    Raises:
        ConfigError: nothing or two things are named, or what is there can't be fitted by this law.
    """
    if (config.sweep is None) == (config.records is None):
        names = ", ".join(sweep_names(Store(config.root))) or "none"
        raise ConfigError(
            "name what to fit: sweep=NAME or records=FILE, one of the two. "
            f"Sweeps under {config.root.absolute()}: {names}"
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


def _of_table(config: FitSource, path: Path) -> RunsToFit:
    require(
        config.loss == WHOLE,
        f"loss: {config.loss!r} is for runs of a sweep; name a table's column with columns.loss",
    )
    rules = replace(config.table, filter=config.filter, exclude=config.exclude, test=config.test)
    columns = replace(config.columns, variables=config.variables)
    with unchanged(path) as sha256:
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
        "sha256": sha256,
    }
    stem = path.name.split(".")[0]
    return RunsToFit(
        name=str(path),
        points=loaded.points,
        exclusions=loaded.excluded,
        test=loaded.test,
        out=config.out or config.root / "fits" / stem / "fit.json",
        source=source,
    )


def _of_records(
    config: FitSource, name: str, records: RecordSet, source: dict[str, Any], out: Path
) -> RunsToFit:
    points, excluded = points_from_records(measured_as(records, config.loss), config.size)
    fitted = set(points.label)
    used = [record for record in records.records if record.run_id in fitted]
    check_one_protocol(used, config.allow)
    conventions = sorted({record.convention for record in used})
    if len(conventions) > 1:
        raise ConfigError(
            f"the runs count FLOPs and parameters by different conventions: "
            f"{', '.join(conventions)}; they can't be fitted together"
        )
    return RunsToFit(
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
        axes: dict[str, list[Any]] = {}
        for path, value in (item for each in known.values() for item in each.items()):
            if value not in axes.setdefault(path, []):
                axes[path].append(value)
        if not axes:
            raise ConfigError(
                f"sweep={plan.name} varies nothing, so {as_option('variant', variant)} is none of "
                "its runs; leave out variant="
            )
        matching = f" that match {as_option('variant', variant)}" if variant else ""
        raise ConfigError(
            f"sweep={plan.name} holds {counted(len(variants), 'variant', 'variants')}{matching}; a "
            f"fit is of one, e.g. {as_option('variant', next(iter(known.values())))}. Its axes: "
            f"{'; '.join(f'{path}: {values}' for path, values in axes.items())}"
        )
    finished = [run for run in chosen if (store.run_dir(run.run_id) / "record.json").exists()]
    named = {run.run_id: run for run in finished}
    loaded = store.records(named)
    missing = tuple(_missing(store, [run.run_id for run in chosen if run.run_id not in named]))
    if not loaded.records:
        reasons = "; ".join(f"{e.label}: {e.reason}" for e in (*loaded.excluded, *missing)[:2])
        raise ConfigError(
            f"sweep={plan.name}: none of its {len(chosen)} runs can be fitted ({reasons}, ...). "
            f"See `windtunnel status sweep={plan.name}{under(store.root)}`"
        )
    records = tuple(as_planned(record, named[record.run_id]) for record in loaded.records)
    return RecordSet(records=records, excluded=(*loaded.excluded, *missing))


def _missing(store: Store, names: list[str]) -> Iterator[Exclusion]:
    for name in names:
        state = store.state(name)
        reason = f"{state.status}: {state.reason}" if state.reason else state.status
        yield Exclusion(label=name, reason=reason)
