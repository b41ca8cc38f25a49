"""From a finished sweep and a target to a promotion.

The surface chooses size and tokens; the sweep's own recipe and protocol give everything else,
through the very function that made the rungs (`sweeps.plan.spec_for`). Each number is kept with the
rule it comes from, its interval, and what snapping it to a shape that exists costs in predicted
loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.fitting import fit_compute_law
from analysis.laws import LossSurface
from analysis.results import FitError, Prediction
from analysis.study import Study
from analysis.summary_lines import untested
from model.accounting import count_params, flops_per_token
from model.config import ModelConfig, require, require_positive
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.files import content_hash
from sweeps.plan import SweepConfig, model_for, spec_for
from sweeps.protocol import fingerprint, protocol_of
from sweeps.provenance import git_state, hardware
from sweeps.recipe import PowerLawRule
from sweeps.spec import RunSpec, run_id
from windtunnel import gates
from windtunnel.along import forecast_along
from windtunnel.choices import Allocated, Choice, SizeRange, allocate, formula
from windtunnel.finished import FinishedSweep
from windtunnel.gates import GateResult, GateThresholds
from windtunnel.ledger import utc_now
from windtunnel.load_forecast import forecast_loads
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.plan import MachinePlan, best_plan
from windtunnel.promotion import BegunFrom, Evidence, Promotion, sealed
from windtunnel.published import FieldComparison, compare
from windtunnel.targets import (
    Aim,
    ComputeBudget,
    FirstStage,
    GpuHours,
    LingTarget,
    NextRung,
    ParamBudget,
    Target,
    TokenBudget,
    require_beyond,
    target_name,
)
from windtunnel.trials import TrialEvidence, trial_evidence

FIRST_UTILISATION = 0.3
SETTLING_ROUNDS = 4
MOST_FLOPS_PER_TOKEN = 1e18
"""Three million times Ling-1T's; a law that asks for more was asked where it says nothing."""


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


def recommend(sweep: FinishedSweep, target: FirstStage, settings: Settings) -> Promotion:
    """The promotion of ``target`` from ``sweep``.

    Raises:
        ConfigError: the target lies within the sweep, or the recipe can't build that size.
    """
    study = sweep.study
    largest_flops = max(study.points.flops)
    target = _settled(sweep, target, settings)
    allocated = _allocated(sweep, _aim(target, sweep, largest_flops), settings)
    require_beyond(allocated.train_flops, largest_flops)
    config = _config_at_target(sweep.config, target)
    spec = _on_whole_ranks(_spec(sweep, config, allocated), settings.gpus)
    found = Recommended(
        spec=spec,
        choices=(
            *_allocation_choices(study, target, allocated, spec),
            *_recipe_choices(config, spec),
        ),
        published=compare(spec, config.recipe.shape, target)
        if isinstance(target, LingTarget)
        else (),
        notes=_recipe_notes(sweep, config),
    )
    return promotion_of(sweep, target, found, settings)


def promotion_of(
    sweep: FinishedSweep, target: Target, found: Recommended, settings: Settings
) -> Promotion:
    """Forecast and judge a run that was chosen."""
    study, spec = sweep.study, found.spec
    machine, why_not = _machine_plan(spec, settings)
    if machine is not None and found.begun_from is not None:
        # What the launched run has done is paid for.
        machine = machine.of_steps(spec.train.num_steps - found.begun_from.step)
    trials = trial_evidence(
        sweep.root,
        _config_at_target(sweep.config, target) if isinstance(target, LingTarget) else sweep.config,
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


def _allocated(sweep: FinishedSweep, aim: Aim, settings: Settings) -> Allocated:
    """The surface's choice, refused where it is no model that anybody could train."""
    study = sweep.study
    found = allocate(study.surface, study.points, aim, settings.size_range, settings.level)
    size = found.flops_per_token
    require(
        size <= MOST_FLOPS_PER_TOKEN,
        f"target: the law asks for {size:.3g} FLOPs a token, {size / max(study.points.size):.2g} "
        "times the sweep's largest; choose a smaller target",
    )
    return found


def _second_opinion(study: Study, train_flops: float, level: float) -> Prediction | None:
    """The loss by another form of law, or None where the sweep has too few budgets for it."""
    try:
        envelope = fit_compute_law(study.points, study.settings)
    except FitError:
        return None
    return envelope.predict(train_flops, level=level)


def _aim(target: FirstStage, sweep: FinishedSweep, largest_flops: float) -> Aim:
    match target:
        case NextRung():
            least = target.least_size_growth * max(sweep.study.points.size)
            return Aim(train_flops=target.factor * largest_flops, least_size=least)
        case ComputeBudget() | GpuHours() | LingTarget():
            return Aim(train_flops=target.train_flops)
        case TokenBudget():
            return Aim(tokens=target.tokens)
        case ParamBudget():
            return Aim(flops_per_token=_size_of_params(target.total_params, sweep))


def _size_of_params(total_params: int, sweep: FinishedSweep) -> float:
    """M of the recipe's shape whose parameters, in total, come nearest to ``total_params``."""
    config = sweep.config

    def shape(size: float) -> ModelConfig:
        return model_for(config, sweep.corpus, size)

    low = high = max(sweep.study.points.size)
    if count_params(shape(low)).total >= total_params:
        raise ConfigError(
            f"target.total_params: {total_params:,} is no more than the sweep's largest model has "
            f"({count_params(shape(low)).total:,}); that is measured already"
        )
    while count_params(shape(high)).total < total_params:
        low, high = high, 2 * high
    # Parameters rise with M, so halving the bracket 30 times leaves two neighbouring widths.
    for _ in range(30):
        middle = (low * high) ** 0.5
        if count_params(shape(middle)).total < total_params:
            low = middle
        else:
            high = middle
    nearest = min(
        (shape(low), shape(high)), key=lambda model: abs(count_params(model).total - total_params)
    )
    return flops_per_token(nearest, config.sequence_length).house


def _on_whole_ranks(spec: RunSpec, gpus: int) -> RunSpec:
    """The batch in whole sequences a GPU, so that every parallel size divides it."""
    train = spec.train
    at_once = gpus * train.sequence_length
    if gpus == 1 or train.batch_tokens < at_once:
        return spec
    batch_tokens = round(train.batch_tokens / at_once) * at_once
    tokens = max(1, round(train.tokens / batch_tokens)) * batch_tokens
    return replace(spec, train=replace(train, batch_tokens=batch_tokens, tokens=tokens))


def _machine_plan(spec: RunSpec, settings: Settings) -> tuple[MachinePlan | None, str]:
    """The fastest plan that fits the longest sequences it trains on, or why there is none."""
    lengths = [stage.sequence_length for stage in spec.corpus.stages if stage.sequence_length]
    longest = max([spec.train.sequence_length, *lengths])
    try:
        train = replace(spec.train, sequence_length=longest)
        return best_plan(spec.model, train, settings.hardware, settings.gpus), ""
    except ConfigError as error:
        return None, str(error)


def _settled(sweep: FinishedSweep, target: FirstStage, settings: Settings) -> FirstStage:
    """GPU-hours become FLOPs by the machine plan of the very run they pay for.

    The run decides the plan and the plan's utilisation the run: a few rounds settle both.
    """
    if not isinstance(target, GpuHours) or target.utilisation is not None:
        return target
    peak = target.peak_flops_per_s or settings.hardware.peak_flops_per_s
    used = FIRST_UTILISATION
    for _ in range(SETTLING_ROUNDS):
        target = replace(target, peak_flops_per_s=peak, utilisation=used)
        allocated = _allocated(sweep, Aim(train_flops=target.train_flops), settings)
        spec = _on_whole_ranks(_spec(sweep, sweep.config, allocated), settings.gpus)
        plan, why_not = _machine_plan(spec, settings)
        if plan is None:
            params = count_params(spec.model).total
            raise ConfigError(
                f"target.gpu_hours: they pay for {params:.3g} parameters, without a plan\n- "
                f"{why_not}\n- or say how much of the peak is used: target.utilisation="
                f"{FIRST_UTILISATION}"
            )
        flops = flops_per_token(spec.model, spec.train.sequence_length).house * spec.train.tokens
        used = min(1.0, flops / (plan.gpu_hours * 3600 * peak))
    return target


def _config_at_target(config: SweepConfig, target: FirstStage) -> SweepConfig:
    """The sweep's config, with the target's recipe where it brings one for its size."""
    if isinstance(target, LingTarget) and target.recipe is not None:
        return replace(config, recipe=target.recipe)
    return config


def _spec(sweep: FinishedSweep, config: SweepConfig, allocated: Allocated) -> RunSpec:
    """The run: the shape nearest to the chosen M, and the tokens that belong to it."""
    shape = model_for(config, sweep.corpus, allocated.flops_per_token)
    size = flops_per_token(shape, config.sequence_length).house
    return spec_for(
        config,
        sweep.corpus,
        flops_per_token=size,
        tokens=round(allocated.tokens_at(size)),
        seed=config.ladder.seed,
        rung="promoted",
        role="promoted",
    )


def _allocation_choices(
    study: Study, target: Target, allocated: Allocated, spec: RunSpec
) -> tuple[Choice, ...]:
    """Compute, size and tokens, with the surface's own price for not being at its optimum."""
    law = study.surface.law
    assert isinstance(law, LossSurface)
    size = flops_per_token(spec.model, spec.train.sequence_length).house
    tokens, flops = spec.train.tokens, allocated.train_flops
    best = allocated.optimum
    shaped = float(law(size, allocated.tokens_at(size)))
    final = float(law(size, tokens))
    return (
        Choice(
            name="train_flops",
            law=f"target {target_name(target)}",
            wanted=flops,
            used=size * tokens,
            note="the target's own, no interval",
        ),
        Choice(
            name="flops_per_token",
            law=allocated.law,
            wanted=best.size.value,
            low=best.size.low,
            high=best.size.high,
            level=best.size.level,
            used=size,
            cost_nats=shaped - best.loss.value,
            note=allocated.note,
        ),
        Choice(
            name="tokens",
            law="the target's, in whole batches"
            if allocated.fixed_tokens is not None
            else "train_flops / flops_per_token, in whole batches",
            wanted=best.tokens.value,
            low=best.tokens.low,
            high=best.tokens.high,
            level=best.tokens.level,
            used=tokens,
            cost_nats=final - shaped,
            note="wanted is the optimum's; used belongs to the shape that was built",
        ),
    )


def _recipe_choices(config: SweepConfig, spec: RunSpec) -> tuple[Choice, ...]:
    """What the recipe's published laws and fixed ratios give; the sweep fitted none of them."""
    recipe, train, moe = config.recipe, spec.train, spec.model.moe
    flops = flops_per_token(spec.model, train.sequence_length).house * train.tokens
    published = "a published law, no interval was published and this sweep did not refit it"
    held = "held equal along the ladder, so no law over it was fitted"
    training = recipe.training
    choices = [
        Choice(
            name="peak_lr",
            law=_rule(training.peak_lr, training.peak_lr_factor),
            wanted=training.peak_lr_factor * training.peak_lr(flops),
            used=train.optimizer.peak_lr,
            note=published,
        ),
        Choice(
            name="batch_tokens",
            law=_rule(training.batch_tokens, training.batch_factor),
            wanted=training.batch_factor * training.batch_tokens(flops),
            used=train.batch_tokens,
            note=f"{published}; in whole sequences, the surface puts no price on it",
        ),
        Choice(
            name="balance_update_rate",
            law="the sweep's protocol",
            wanted=config.balance.update_rate,
            used=train.balance.update_rate,
            note=held,
        ),
    ]
    if moe is not None and spec.model.granularity is not None:
        shape = recipe.shape
        visited = shape.experts_per_token + shape.num_shared_experts
        choices += [
            Choice(
                name="activation_ratio",
                law="the recipe's experts",
                wanted=visited / (shape.num_experts + shape.num_shared_experts),
                used=moe.activation_ratio,
                note=held,
            ),
            Choice(
                name="granularity",
                law="the recipe's ratio 2·width / expert width",
                wanted=shape.granularity,
                used=spec.model.granularity,
                note=held,
            ),
        ]
    return tuple(choices)


def _recipe_notes(sweep: FinishedSweep, config: SweepConfig) -> tuple[str, ...]:
    """Shape ratios that the sweep's rungs did not have: the law has not seen what they do."""
    ours, theirs = to_plain(config.recipe.shape), to_plain(sweep.config.recipe.shape)
    changed = [
        f"{name} {theirs[name]} -> {ours[name]}" for name in ours if ours[name] != theirs[name]
    ]
    if not changed:
        return ()
    return (
        f"shapes by recipe {config.recipe.name}, which the sweep did not train "
        f"({', '.join(changed)}): the forecast knows nothing of what they change",
    )


def _rule(rule: PowerLawRule, factor: float) -> str:
    scale = "" if factor == 1 else f"{factor:g} · "
    return f"{scale}{rule.coefficient:g}·C^{rule.exponent:g}"


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
            forecast,
            promoted_size / max(study.points.size),
            spec.train.tokens / max(study.points.tokens),
            thresholds,
        ),
        gates.health_gate(study.surface.warnings, thresholds),
        gates.noise_gate(study.noise, thresholds),
        gates.repetition_gate(epochs, thresholds),
        gates.protocol_gate(study.protocol_fingerprints, promoted_protocol),
    )


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
    if further := untested(forecast.extrapolation_ratio, sweep.study.holdouts):
        notes.append(further)
    return notes
