"""A finished sweep as a promotion needs it: what was planned, measured and fitted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.records import RunRecord
from analysis.study import Study
from model.errors import ConfigError
from model.training.data import PreparedCorpus
from sweeps import grid
from sweeps.measure import kept_under, planned_corpus
from sweeps.mixtures import without_shares
from sweeps.plan import Plan, SweepConfig, as_planned
from sweeps.spec import RunSpec
from sweeps.store import Store
from windtunnel.along import Evaluated, evaluations_in
from windtunnel.commands.status import known_plan
from windtunnel.quoting import under


@dataclass(frozen=True, kw_only=True)
class FinishedSweep:
    """Everything a promotion reads from disk."""

    root: Path
    plan: Plan
    config: SweepConfig
    """What the plan was made from, with the fitted variant's values."""
    records: tuple[RunRecord, ...]
    unfinished: tuple[str, ...]
    """Planned runs without a record."""
    study: Study
    corpus: PreparedCorpus
    evaluations: dict[str, tuple[Evaluated, ...]] = field(default_factory=dict)
    """By run id, what was measured on the way."""


def load_sweep(root: Path, name: str) -> FinishedSweep:
    """Read plan, records, fit and corpus of a sweep; of its variants, the one that was fitted.

    Raises:
        ConfigError: no such sweep, no run of it is done, no fit, or a fit that is older than runs
            finished since.
    """
    store = Store(root)
    plan, plan_path = known_plan(store, name), store.plan_path(name)
    if plan.config is None:
        raise ConfigError(
            f"{plan_path}: planned without a ladder, there is nothing to promote from"
        )
    if not any(_is_measured(store, run.run_id) for run in plan.runs):
        raise ConfigError(
            f"sweep {name}: none of its {len(plan.runs)} runs is done; run "
            f"`windtunnel sweep sweep={name}{under(root)}` first"
        )
    fit_path = plan_path.with_name("fit.json")
    if not fit_path.exists():
        raise ConfigError(
            f"{fit_path}: no such file; run `windtunnel fit sweep={name}{under(root)}` first"
        )
    study = Study.load(fit_path)
    variant = study.source.get("variant", {})
    runs = {
        run.run_id: run
        for run in plan.measured
        if all(run.variant.get(path) == value for path, value in variant.items())
    }
    if not runs:
        raise ConfigError(
            f"sweep {name}: its fit is of a variant that the sweep has no longer ({variant}); run "
            f"`windtunnel fit sweep={name}{under(root)}` again"
        )
    spec = next(iter(runs.values())).spec
    loaded = store.records([run_id for run_id in runs if _is_measured(store, run_id)])
    fitted = {*study.points.label, *(exclusion.label for exclusion in study.exclusions)}
    unseen = [record.run_id for record in loaded.records if record.run_id not in fitted]
    if unseen:
        raise ConfigError(
            f"sweep {name}: its fit is older than {len(unseen)} finished runs "
            f"({', '.join(unseen[:3])}{', ...' if len(unseen) > 3 else ''}); run "
            f"`windtunnel fit sweep={name}{under(root)}` again"
        )
    return FinishedSweep(
        root=root,
        plan=plan,
        config=_of_variant(plan.config, variant, spec),
        records=tuple(as_planned(record, runs[record.run_id]) for record in loaded.records),
        unfinished=tuple(run_id for run_id in runs if not _is_measured(store, run_id)),
        study=study,
        corpus=planned_corpus(kept_under(spec, root)),
        evaluations={
            run_id: evaluations_in(store.run_dir(run_id) / "metrics.jsonl")
            for run_id in study.points.label
        },
    )


def _of_variant(config: SweepConfig, variant: dict[str, Any], spec: RunSpec) -> SweepConfig:
    """The sweep with the variant's values; its mixture is that of ``spec``, one of its runs."""
    return replace(grid.replaced(config, without_shares(variant)), corpus=spec.corpus)


def _is_measured(store: Store, run_id: str) -> bool:
    return (store.run_dir(run_id) / "record.json").exists()
