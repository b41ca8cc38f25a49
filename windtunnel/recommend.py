"""From a finished sweep and a target to the run that is recommended.

The surface chooses size and tokens; the sweep's own recipe and protocol give everything else,
through the very function that made the rungs (`sweeps.plan.spec_for`).
"""

from __future__ import annotations

from dataclasses import replace

from model.accounting import count_params, flops_per_token
from model.config import ModelConfig, require
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.plan import SweepConfig, model_for, spec_for
from sweeps.spec import RunSpec
from windtunnel.choice_rules import allocation_choices, recipe_choices
from windtunnel.choices import Allocated, allocate
from windtunnel.finished import FinishedSweep
from windtunnel.forecasting import (
    Recommended,
    Settings,
    config_at_target,
    machine_plan,
    promotion_of,
)
from windtunnel.promotion import Promotion
from windtunnel.published import compare
from windtunnel.targets import (
    Aim,
    ComputeBudget,
    FirstStage,
    GpuHours,
    LingTarget,
    NextRung,
    ParamBudget,
    TokenBudget,
    require_beyond,
)

FIRST_UTILISATION = 0.3
SETTLING_ROUNDS = 4
MOST_FLOPS_PER_TOKEN = 1e18
"""Three million times Ling-1T's; a law that asks for more was asked where it says nothing."""


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
    config = config_at_target(sweep.config, target)
    spec = _on_whole_ranks(_spec(sweep, config, allocated), settings.gpus)
    found = Recommended(
        spec=spec,
        choices=(
            *allocation_choices(study, target, allocated, spec),
            *recipe_choices(config, spec),
        ),
        published=compare(spec, config.recipe.shape, target)
        if isinstance(target, LingTarget)
        else (),
        notes=_recipe_notes(sweep, config),
    )
    return promotion_of(sweep, target, found, settings)


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
        plan, why_not = machine_plan(spec, settings)
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
