"""A finished sweep as a promotion needs it: what was planned, measured and fitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.records import RunRecord, load_records
from analysis.study import Study
from model.errors import ConfigError
from model.training.data import PreparedCorpus
from sweeps.measure import planned_corpus
from sweeps.plan import Plan, SweepConfig
from sweeps.store import Store
from windtunnel.commands.status import known_plan


@dataclass(frozen=True, kw_only=True)
class FinishedSweep:
    """Everything a promotion reads from disk."""

    plan: Plan
    config: SweepConfig
    """What the plan was made from."""
    records: tuple[RunRecord, ...]
    unfinished: tuple[str, ...]
    """Planned runs without a record."""
    study: Study
    corpus: PreparedCorpus


def load_sweep(root: Path, name: str) -> FinishedSweep:
    """Read plan, records, fit and corpus of a sweep.

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
    run_ids = [run.run_id for run in plan.runs]
    done = [run_id for run_id in run_ids if (store.run_dir(run_id) / "record.json").exists()]
    if not done:
        raise ConfigError(
            f"sweep {name}: none of its {len(run_ids)} runs is done; run "
            f"`windtunnel sweep sweep={name}` first"
        )
    loaded = load_records(store.run_dir(run_id) for run_id in done)
    study = Study.load(plan_path.with_name("fit.json"))
    fitted = {*study.points.label, *(exclusion.label for exclusion in study.exclusions)}
    unseen = [record.run_id for record in loaded.records if record.run_id not in fitted]
    if unseen:
        raise ConfigError(
            f"sweep {name}: its fit is older than {len(unseen)} finished runs "
            f"({', '.join(unseen[:3])}{', ...' if len(unseen) > 3 else ''}); run "
            f"`windtunnel fit sweep={name}` again"
        )
    return FinishedSweep(
        plan=plan,
        config=plan.config,
        records=loaded.records,
        unfinished=tuple(run_id for run_id in run_ids if run_id not in done),
        study=study,
        corpus=planned_corpus(plan.runs[0].spec),
    )
