"""What the report says, gathered from disk before anything is drawn or typeset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.curves import Curve
from analysis.feature_trial import Trial
from analysis.plots_evidence import Evidence, HeldForecast, OnTheWay, Promoted
from analysis.plots_loss import use_of
from analysis.records import RunRecord
from analysis.study import Study
from model.accounting import count_params
from model.errors import ConfigError
from model.garbage import collector_at_rest
from sweeps.plan import Plan, PlannedRun, as_planned, without_seed
from sweeps.store import RunState
from windtunnel.along import evaluations_in
from windtunnel.ledger import Reading, ledger_of
from windtunnel.ledger_rows import Entry
from windtunnel.promotion import Promotion, Promotions
from windtunnel.report.origins import protocol_rows, provenance_rows
from windtunnel.report.sources import Sources
from windtunnel.sweep_tables import variant_text


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One line of the table of runs: planned values always, measured ones once it is done."""

    run_id: str
    rung: str
    role: str
    status: str
    """planned, running, interrupted, done, failed or diverged."""
    reason: str
    """Why it failed, diverged or was left out; empty for a run in good order."""
    use: str
    """What the fit did with it."""
    variant: str
    seed: int
    total_params: int
    active_params: int
    flops_per_token: float
    tokens: int
    train_flops: float
    peak_lr: float
    batch_tokens: int
    record: RunRecord | None

    @property
    def max_vio(self) -> float | None:
        """Mean over layers."""
        if self.record is None or not self.record.load_by_layer:
            return None
        loads = self.record.load_by_layer
        return sum(layer.max_vio for layer in loads) / len(loads)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The newest promotion made from this sweep, and what became of it."""

    promotion: Promotion
    entry: Entry | None
    """Its line in the ledger; None before a launch."""
    record: RunRecord | None
    """What the promoted run measured."""
    waypoints: tuple[OnTheWay, ...]
    """Forecasts along the run, and what it measured there."""
    curve: Curve | None
    """Its training curve, as far as it has come."""

    @property
    def measured(self) -> float | None:
        """Held-out loss of the promoted run, as the ledger has it."""
        outcome = self.entry.outcome if self.entry else None
        return outcome.loss_nats if outcome else None

    def measured_load(self, name: str) -> float | None:
        """A measure of expert load on the held-out split, mean over layers."""
        layers = self.record.load_by_layer if self.record else ()
        values = [getattr(layer, name) for layer in layers]
        return sum(values) / len(values) if values and None not in values else None

    @property
    def verdict(self) -> str:
        """The ledger's word: inside, OUTSIDE, open, DIVERGED, ALTERED; or not launched."""
        return self.entry.verdict if self.entry else "not launched"


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything on the page."""

    sweep: str
    root: Path
    """As it was given: commands on the page name it, to be typed where this one was."""
    made_at: str
    version: str
    plan: Plan
    runs: tuple[RunRow, ...]
    evidence: Evidence
    answer: Answer | None
    problems: tuple[str, ...]
    """Files that could not be trusted, a sentence each."""
    ledger: tuple[Entry, ...]
    fit_path: Path
    protocol: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]

    @property
    def study(self) -> Study | None:
        """The fit, if there is one."""
        return self.evidence.study

    @property
    def counts(self) -> dict[str, int]:
        """Status to number of runs."""
        return dict(Counter(row.status for row in self.runs))

    @property
    def unfitted(self) -> int:
        """Runs that finished after the fit was made."""
        return sum(row.use == "finished after the fit" for row in self.runs)


@collector_at_rest()
def gather(
    sweep: str, root: Path, *, made_at: str, version: str, sources: Sources | None = None
) -> Content:
    """Read plan, runs, fit, promotion and ledger of ``sweep``; only the plan has to exist.

    Raises:
        ConfigError: no sweep of that name was ever planned under ``root``.
    """
    sources = sources or Sources(root)
    store, plan, study = sources.store, sources.plan(sweep), sources.study(sweep)
    states = {run.run_id: store.state(run.run_id) for run in plan.measured}
    records = {
        run.run_id: as_planned(record, run)
        for run in plan.measured
        if (record := sources.record(run.run_id)) is not None
    }
    ledger = ledger_of(root)
    read = ledger.read()
    answer, problems = latest_answer(root, sweep, read, sources)
    bare = Evidence(
        records=tuple(records.values()),
        study=study,
        promoted=promoted_of(answer),
        variants={run.run_id: _variant(run) for run in plan.measured},
    )
    curves = {
        record.run_id: curve
        for record in bare.with_curves()
        if (curve := sources.curve(record.run_id)) is not None
    }
    uses = {
        record.run_id: use
        for record in bare.largest_run_by_rung().values()
        if (use := sources.use(record.run_id)) is not None
    }
    trials, broken = trials_of(sweep, sources)
    evidence = replace(
        bare, curves=curves, uses=uses, trials=trials, forecasts=held_forecasts(read.entries)
    )
    return Content(
        sweep=sweep,
        root=root,
        made_at=made_at,
        version=version,
        plan=plan,
        runs=run_rows(plan, states, records, evidence),
        evidence=evidence,
        answer=answer,
        problems=(*problems, *broken, *(f"{ledger.path}, {text}" for text in read.problems)),
        ledger=read.entries,
        fit_path=sources.fit_path(sweep),
        protocol=protocol_rows(evidence.records, study),
        provenance=provenance_rows(evidence.records),
    )


def held_forecasts(entries: Iterable[Entry]) -> tuple[HeldForecast, ...]:
    """The entries that are evidence on the intervals, of runs that ended with a loss."""
    return tuple(
        HeldForecast(
            evidence=entry.forecast.evidence,
            forecast=entry.forecast.forecast,
            measured=entry.measured,
        )
        for entry in entries
        if entry.measured is not None
    )


def _variant(run: PlannedRun) -> str:
    """In words; a seed is a repetition, and has a column of its own."""
    return variant_text(without_seed(run.variant), ", ")


def run_rows(
    plan: Plan,
    states: Mapping[str, RunState],
    records: Mapping[str, RunRecord],
    evidence: Evidence,
) -> tuple[RunRow, ...]:
    """The table of runs, small to large and short to long."""
    rows = [
        run_row(run, states[run.run_id], records.get(run.run_id), evidence) for run in plan.measured
    ]
    return tuple(sorted(rows, key=lambda r: (r.flops_per_token, r.tokens, r.seed, r.run_id)))


def run_row(
    run: PlannedRun, state: RunState, record: RunRecord | None, evidence: Evidence
) -> RunRow:
    """One line of the table."""
    excluded = evidence.excluded.get(run.run_id, "")
    diverged = record is not None and record.status == "diverged"
    use = use_of(record, evidence) if record is not None and not diverged else "not measured"
    train = run.spec.train
    return RunRow(
        run_id=run.run_id,
        rung=run.spec.rung,
        role=run.spec.role,
        status=state.status,
        reason=excluded or state.reason,
        use=use,
        variant=_variant(run),
        seed=train.seed,
        total_params=run.cost.total_params,
        active_params=run.cost.active_params,
        flops_per_token=run.cost.flops_per_token,
        tokens=train.tokens,
        train_flops=run.cost.train_flops,
        peak_lr=train.optimizer.peak_lr,
        batch_tokens=train.batch_tokens,
        record=record,
    )


def latest_answer(
    root: Path, sweep: str, read: Reading, sources: Sources
) -> tuple[Answer | None, tuple[str, ...]]:
    """The newest promotion of ``sweep``; those that were altered are named instead of believed."""
    promotions = Promotions(root)
    found, problems = [], []
    for name in promotions.ids():
        try:
            promotion = promotions.find(name)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if promotion.sweep == sweep:
            found.append(promotion)
    if not found:
        return None, tuple(problems)
    newest = max(found, key=lambda promotion: (promotion.created_at, promotion.id))
    metrics = sources.metrics_path(newest.run_id)
    found_at = {found.step: found.loss_nats for found in evaluations_in(metrics)}
    answer = Answer(
        promotion=newest,
        entry=read.find(newest.id),
        record=sources.record(newest.run_id),
        waypoints=tuple(
            OnTheWay(
                tokens=float(waypoint.step * newest.spec.train.batch_tokens),
                forecast=waypoint.forecast,
                measured=found_at.get(waypoint.step),
            )
            for waypoint in newest.waypoints
        ),
        curve=sources.curve(newest.run_id),
    )
    return answer, tuple(problems)


def trials_of(sweep: str, sources: Sources) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """The sweep's feature trials, and a sentence for each file that is none."""
    trials, problems = [], []
    for path in sources.trial_paths(sweep):
        try:
            trials.append(sources.trial(path))
        except ConfigError as error:
            problems.append(str(error))
    return tuple(trials), tuple(problems)


def promoted_of(answer: Answer | None) -> Promoted | None:
    """The promoted run as the figures mark it."""
    if answer is None:
        return None
    promotion = answer.promotion
    counts = count_params(promotion.spec.model)
    attention = promotion.flops_per_token / 6 - counts.active_non_embedding
    return Promoted(
        label=promotion.id,
        flops=promotion.train_flops,
        sizes={
            "flops_per_token": promotion.flops_per_token,
            "active_params": float(counts.active),
            "active_non_embedding_params": float(counts.active_non_embedding),
            "active_params_with_attention": counts.active + attention,
            "total_params": float(counts.total),
            "total_params_with_attention": counts.total + attention,
        },
        tokens=float(promotion.spec.train.tokens),
        forecast=promotion.forecast,
        measured=answer.measured,
        loads={
            load.name: (load.prediction, answer.measured_load(load.name))
            for load in promotion.loads
            if load.prediction is not None
        },
        waypoints=answer.waypoints,
        curve=answer.curve,
        diverged=answer.verdict == "DIVERGED",
    )
