"""From a run that was chosen to its promotion: forecast, machine plan, gates, evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.fitting import fit_compute_law
from analysis.laws import LossSurface
from analysis.results import FitError, Prediction
from analysis.study import Study
from analysis.summary_lines import untested
from model.accounting import count_params, flops_per_token
from model.config import require, require_positive
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.files import content_hash
from sweeps.plan import SweepConfig
from sweeps.protocol import fingerprint, protocol_of
from sweeps.provenance import git_state, hardware
from sweeps.spec import RunSpec, run_id
from windtunnel import gates
from windtunnel.along import forecast_along
from windtunnel.choices import Choice, SizeRange, formula
from windtunnel.finished import FinishedSweep
from windtunnel.gates import GateResult, GateThresholds
from windtunnel.ledger import utc_now
from windtunnel.load_forecast import forecast_loads
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.plan import MachinePlan, best_plan
from windtunnel.promotion import BegunFrom, Evidence, Promotion, sealed
from windtunnel.published import FieldComparison
from windtunnel.repeats import how_to_repeat
from windtunnel.targets import FirstStage, LingTarget, Target, target_name
from windtunnel.trials import TrialEvidence, trial_evidence


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a promotion is made; `conf/promote.yaml` says why each value."""

    level: float
    """Of every interval."""
    size_range: SizeRange
    thresholds: GateThresholds
    hardware: Hardware
    gpus: int

    def __post_init__(self) -> None:
        require(0 < self.level < 1, f"level must be between 0 and 1, got {self.level}")
        require_positive(gpus=self.gpus)


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """A run that was chosen, before it is forecast."""

    spec: RunSpec
    choices: tuple[Choice, ...]
    published: tuple[FieldComparison, ...] = ()
    notes: tuple[str, ...] = ()
    begun_from: BegunFrom | None = None


def promotion_of(
    sweep: FinishedSweep, target: Target, found: Recommended, settings: Settings
) -> Promotion:
    """Forecast and judge a run that was chosen."""
    study, spec = sweep.study, found.spec
    machine, why_not = machine_plan(spec, settings)
    if machine is not None and found.begun_from is not None:
        # What the launched run has done is paid for.
        machine = machine.of_steps(spec.train.num_steps - found.begun_from.step)
    trials = trial_evidence(
        sweep.root,
        config_at_target(sweep.config, target) if isinstance(target, LingTarget) else sweep.config,
    )
    size = flops_per_token(spec.model, spec.train.sequence_length).house
    counts = count_params(spec.model)
    forecast = study.surface.predict(size, spec.train.tokens, level=settings.level)
    second = _second_opinion(study, size * spec.train.tokens, settings.level)
    waypoints, along_the_run = forecast_along(
        study, sweep.evaluations, size, spec.train, settings.level
    )
    if found.begun_from is not None:
        waypoints = tuple(w for w in waypoints if w.step > found.begun_from.step)
    promotion = Promotion(
        id="",
        created_at=utc_now(),
        sweep=sweep.plan.name,
        target=target,
        target_name=target_name(target),
        run_id=run_id(spec),
        total_params=counts.total,
        active_params=counts.active,
        flops_per_token=size,
        train_flops=size * spec.train.tokens,
        forecast=forecast,
        second_opinion=second,
        waypoints=waypoints,
        along_the_run=along_the_run,
        loads=forecast_loads(
            sweep.records, size * spec.train.tokens, settings.level, study.settings
        ),
        choices=found.choices,
        gates=(
            *_gates(sweep, spec, forecast, settings.thresholds),
            gates.trial_gate(trials, settings.thresholds),
            gates.machine_gate(machine, why_not),
        ),
        thresholds=settings.thresholds,
        published=found.published,
        begun_from=found.begun_from,
        machine=machine,
        evidence=_evidence(sweep, trials),
        notes=(*_notes(sweep, second, forecast), *found.notes),
        spec=spec,
        provenance={"git": git_state(), "hardware": hardware()},
        content_hash="",
    )
    return sealed(promotion, f"{sweep.plan.name}-{promotion.target_name}")


def _second_opinion(study: Study, train_flops: float, level: float) -> Prediction | None:
    """The loss by another form of law, or None where the sweep has too few budgets for it."""
    try:
        envelope = fit_compute_law(study.points, study.settings)
    except FitError:
        return None
    return envelope.predict(train_flops, level=level)


def machine_plan(spec: RunSpec, settings: Settings) -> tuple[MachinePlan | None, str]:
    """The fastest plan that fits the longest sequences it trains on, or why there is none."""
    lengths = [stage.sequence_length for stage in spec.corpus.stages if stage.sequence_length]
    longest = max([spec.train.sequence_length, *lengths])
    try:
        train = replace(spec.train, sequence_length=longest)
        return best_plan(spec.model, train, settings.hardware, settings.gpus), ""
    except ConfigError as error:
        return None, str(error)


def _gates(
    sweep: FinishedSweep, spec: RunSpec, forecast: Prediction, thresholds: GateThresholds
) -> tuple[GateResult, ...]:
    study = sweep.study
    train = spec.train
    epochs = sweep.corpus.epochs(train.tokens // train.sequence_length, train.sequence_length)
    promoted_protocol = fingerprint(protocol_of(_as_planned(spec, sweep.config)))
    promoted_size = flops_per_token(spec.model, spec.train.sequence_length).house
    return (
        gates.holdout_gate(study.holdouts, thresholds),
        gates.width_gate(forecast, thresholds),
        gates.extrapolation_gate(
            {
                "compute": forecast.extrapolation_ratio,
                "size": promoted_size / max(study.points.size),
                "tokens": spec.train.tokens / max(study.points.tokens),
            },
            thresholds,
        ),
        gates.health_gate(study.surface.warnings, thresholds),
        _noise_gate(sweep, thresholds),
        gates.repetition_gate(epochs, thresholds),
        gates.protocol_gate(study.protocol_fingerprints, promoted_protocol),
    )


def _noise_gate(sweep: FinishedSweep, thresholds: GateThresholds) -> GateResult:
    """With what to type where it refuses."""
    gate = gates.noise_gate(sweep.study.noise, thresholds)
    if gate.passed:
        return gate
    variant = sweep.study.source.get("variant", {})
    more = how_to_repeat(sweep, variant, thresholds.noise_runs)
    return replace(gate, sentence=f"{gate.sentence}. {more}")


def _as_planned(spec: RunSpec, config: SweepConfig) -> RunSpec:
    """With the warm-up as the sweep says it: a second stage has the same one, given in tokens."""
    schedule = spec.train.schedule
    if config.schedule.warmup_tokens is None and not schedule.trunk:
        schedule = replace(schedule, warmup_tokens=None)
    return replace(spec, train=replace(spec.train, schedule=schedule))


def _evidence(sweep: FinishedSweep, trials: tuple[TrialEvidence, ...]) -> Evidence:
    study = sweep.study
    law = study.surface.law
    assert isinstance(law, LossSurface)
    return Evidence(
        run_ids=study.points.label,
        exclusions=study.exclusions,
        unfinished=sweep.unfinished,
        study_hash=content_hash(to_plain(study), digits=64),
        law=f"L(M, D) = {formula(law)}",
        coefficients=study.surface.coefficients,
        warnings=study.surface.warnings,
        noise=study.noise,
        convention=study.convention,
        protocol_fingerprints=study.protocol_fingerprints,
        trials=trials,
        largest_train_flops=max(study.points.flops),
    )


def _notes(sweep: FinishedSweep, second: Prediction | None, forecast: Prediction) -> list[str]:
    notes = []
    if sweep.unfinished:
        notes.append(
            f"{len(sweep.unfinished)} of {len(sweep.plan.runs)} planned runs are not done; the "
            "fit is without them"
        )
    if variant := sweep.study.source.get("variant"):
        chosen = ", ".join(f"{path}={value}" for path, value in variant.items())
        notes.append(f"of the sweep's variants, {chosen} was fitted and is promoted")
    if second is None:
        notes.append("no second opinion: too few budgets for L(C) through the lowest losses")
    elif second.low > forecast.high or second.high < forecast.low:
        notes.append(
            f"L(C) through the lowest losses says {second.low:.4f} to {second.high:.4f} nats, the "
            f"surface {forecast.low:.4f} to {forecast.high:.4f}: the two forms of law disagree here"
        )
    study = sweep.study
    if further := untested(forecast, study.surface.form_rate, study.holdouts):
        notes.append(further)
    return notes


def config_at_target(config: SweepConfig, target: FirstStage) -> SweepConfig:
    """The sweep's config, with the target's recipe where it brings one for its size."""
    if isinstance(target, LingTarget) and target.recipe is not None:
        return replace(config, recipe=target.recipe)
    return config
