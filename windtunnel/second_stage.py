"""A second stage of a launched run: promoted from where it stands, running or over.

It is a run of its own whose first steps are the launched run's: the same model, rates and (but for
a longer context, which draws its text anew) text up to the step it goes on from. So it measures
what it would have measured from the first step on, and the law that forecast the first run
forecasts it too, as far as its protocol is the sweep's: a gate says where it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import require
from model.errors import ConfigError
from model.training.config import InitialWeights, ScheduleConfig, StageConfig, TrainConfig
from model.training.data import PreparedCorpus, prepare_corpus
from model.training.identity import run_identity, trunk_identity
from model.training.schedules import learning_rate, merged_steps, trunk_steps
from model.training.sources import DataStage
from sweeps.attempt import attempt_dir, newest_attempt
from sweeps.measure import kept_under
from sweeps.spec import RunSpec, read_spec, short_count
from sweeps.store import Store
from windtunnel.choices import Choice
from windtunnel.elsewhere import require_same_model
from windtunnel.finished import FinishedSweep
from windtunnel.forecasting import Recommended, Settings, promotion_of
from windtunnel.promotion import BegunFrom, Promotion
from windtunnel.quoting import under
from windtunnel.targets import Continue, Decay, ExtendContext, Merge, OnGivenWeights, SecondStage

if TYPE_CHECKING:
    from model.training.initial import GivenWeights

SAME_RATE = 1e-3
"""Relative difference of two learning rates that counts as none: a warm-up in whole tokens."""
RATES_COMPARED = 200
TAKEN_ANEW = ("train_flops", "tokens")
"""Choices that a second stage makes; the others are the launched run's."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A state or weights of the launched run."""

    step: int
    path: Path
    given: GivenWeights | None = None
    """Weights trained elsewhere, in place of what the launched run has kept."""


def recommend_stage(
    sweep: FinishedSweep, target: SecondStage, settings: Settings, store: Store, launched: Promotion
) -> tuple[Promotion, tuple[Start, ...]]:
    """The promotion of a second stage of ``launched``, and what its run begins with.

    Raises:
        ConfigError: the launched run has nothing that it can be begun from.
    """
    require(
        launched.sweep == sweep.plan.name,
        f"target.launched: {launched.id} is of sweep {launched.sweep}, sweep is {sweep.plan.name}",
    )
    first, size = launched.spec, launched.flops_per_token
    starts = _starts(store, launched, target)
    at = starts[-1].step
    data_dir = kept_under(first, store.root).runtime.data_dir
    spec = _spec(first, target, [start.step for start in starts], sweep.corpus, data_dir)
    _require_same_rates(first.train, spec.train, at)
    if starts[-1].given is not None:
        initial = InitialWeights(sha256=starts[-1].given.digest(), step=at)
        spec = replace(spec, train=replace(spec.train, initial_weights=initial))
    done = at * spec.train.batch_tokens
    found = Recommended(
        spec=spec,
        choices=(
            Choice(
                name="train_flops",
                law=f"{target.kind} a launched run",
                wanted=size * spec.train.tokens,
                used=size * spec.train.tokens,
                note=f"of these {size * done:.3g} are done, by {launched.id}",
            ),
            Choice(
                name="tokens",
                law="the target's, in whole batches",
                wanted=getattr(target, "tokens", None) or spec.train.tokens,
                used=spec.train.tokens,
                note=f"of these {short_count(done)} are done, in {at} steps",
            ),
            *(
                replace(choice, note=f"taken over from {launched.id}")
                for choice in launched.choices
                if choice.name not in TAKEN_ANEW
            ),
        ),
        notes=_notes(target, launched),
        begun_from=BegunFrom(promotion_id=launched.id, run_id=launched.run_id, step=at),
    )
    return promotion_of(sweep, replace(target, launched=launched.id), found, settings), starts


def set_aside_for(
    store: Store, launched: Promotion, promotion: Promotion, starts: tuple[Start, ...]
) -> None:
    """Keep in the promoted run's folder what it begins with, whatever the launched run removes.

    Raises:
        ConfigError: it has removed that meanwhile, or it is damaged.
    """
    from model.training.begin import set_aside  # here: it needs torch

    first, spec = launched.spec, promotion.spec
    owner = run_identity(first.model, first.train, first.corpus_fingerprint)
    kept = trunk_identity(first.model, first.train, first.corpus_fingerprint)
    mine = trunk_identity(spec.model, spec.train, spec.corpus_fingerprint)
    folder = store.create(spec) / "begins"
    for start in starts:
        if start.given is not None:
            from model.training.initial import place_weights  # here: it needs torch

            place_weights(start.given, folder)
            continue
        is_snapshot = start.path.parent.name == "snapshots"
        try:
            set_aside(start.path, kept if is_snapshot else owner, folder, mine)
        except FileNotFoundError:
            raise ConfigError(
                f"{start.path}: was removed meanwhile, {launched.id} has gone on to a later "
                "checkpoint; promote again"
            ) from None


def _starts(store: Store, launched: Promotion, target: SecondStage) -> tuple[Start, ...]:
    """What there is to begin from, the last one to go on from; several only for an average."""
    from model.training.checkpoint import by_step  # here: it needs torch

    run_dir, train = store.run_dir(launched.run_id), launched.spec.train
    if not isinstance(target, Merge) and target.weights is not None:
        return (_given_start(launched, target),)
    newest = newest_attempt(run_dir)
    if newest == 0:
        raise ConfigError(
            f"target.launched: {launched.id} was not started; run `windtunnel launch "
            f"promotion={launched.id}{under(store.root)}` first"
        )
    require(
        train.schedule.kind != "cosine",
        "target.launched: a cosine's rate falls from the start, so no other run has its steps",
    )
    kept = read_spec(run_dir / "spec.json").train.checkpoint
    snapshots = by_step(run_dir / "snapshots")
    before = trunk_steps(train)
    if isinstance(target, Merge):
        steps = sorted(step for step in snapshots if step <= before)[-target.num_merged :]
        gaps = {later - earlier for earlier, later in pairwise(steps)}
        if len(steps) < target.num_merged or len(gaps) != 1:
            raise ConfigError(
                f"target.num_merged: {launched.run_id} has kept {len(steps)} weights at even "
                f"distances before step {before}, not {target.num_merged}; launch with "
                "keep_weights=N, or wait for them"
            )
        return tuple(Start(step=step, path=snapshots[step]) for step in steps)
    whole = {step: path for step, path in snapshots.items() if step in kept.states_at}
    whole |= by_step(attempt_dir(run_dir, newest) / "checkpoints")
    usable = [step for step in whole if step <= before]
    if not usable:
        there = f"those it has are of later steps ({min(whole)} and on)" if whole else "it has none"
        raise ConfigError(
            f"target.launched: no checkpoint of {launched.run_id} from before its rate begins to "
            f"fall, at step {before}: {there}"
        )
    return (Start(step=max(usable), path=whole[max(usable)]),)


def _given_start(launched: Promotion, target: OnGivenWeights) -> Start:
    """Weights that another engine has trained by this promotion."""
    from model.training.initial import given_weights  # here: it needs torch

    assert target.weights is not None, "asked before"
    assert target.at_step is not None, "given with the weights"
    before = trunk_steps(launched.spec.train)
    require(
        target.at_step <= before,
        f"target.at_step ({target.at_step}) must be before the rate begins to fall, at step "
        f"{before} of {launched.id}",
    )
    given = given_weights(target.weights)
    require_same_model(given, launched, "target.weights")
    return Start(step=target.at_step, path=target.weights, given=given)


def _spec(
    first: RunSpec, target: SecondStage, steps: list[int], corpus: PreparedCorpus, data_dir: Path
) -> RunSpec:
    """The second run, whose first ``steps[-1]`` are those of ``first``."""
    train, at = first.train, steps[-1]
    schedule = train.schedule
    if schedule.warmup_tokens is None:
        warmup_tokens = round(schedule.warmup_frac * train.tokens)
        schedule = replace(schedule, warmup_tokens=warmup_tokens)
    match target:
        case Continue():
            require(
                target.tokens > train.tokens,
                f"target.tokens ({target.tokens}) must be more than the launched run's "
                f"({train.tokens}); to end it early use target=decay",
            )
            return replace(first, train=_longer(train, schedule, target.tokens))
        case Decay():
            frac, count = schedule.decay_frac, math.ceil(at / (1 - schedule.decay_frac))
            if target.tokens is not None:
                count = round(target.tokens / train.batch_tokens)
                require(
                    count > at,
                    f"target.tokens ({target.tokens}) must be more than are done "
                    f"({at * train.batch_tokens})",
                )
                frac = 1 - at / count
            falling = replace(schedule, kind="wsd", decay_frac=frac)
            return replace(first, train=_longer(train, falling, count * train.batch_tokens))
        case Merge():
            averaged = replace(
                schedule, kind="wsm", num_merged=len(steps), decay_frac=(at - steps[0]) / at
            )
            merged = _longer(train, averaged, at * train.batch_tokens)
            assert merged_steps(merged) == tuple(steps), "evenly spaced"
            return replace(first, train=merged)
        case ExtendContext():
            longer = _longer(train, schedule, target.tokens)
            return _extended(first, longer, target, at, corpus, data_dir)


def _longer(train: TrainConfig, schedule: ScheduleConfig, tokens: int) -> TrainConfig:
    whole = max(1, round(tokens / train.batch_tokens)) * train.batch_tokens
    return replace(train, schedule=schedule, tokens=whole)


def _extended(
    first: RunSpec,
    train: TrainConfig,
    target: ExtendContext,
    at: int,
    corpus: PreparedCorpus,
    data_dir: Path,
) -> RunSpec:
    require(
        not first.corpus.stages,
        "target.launched: its data has stages; give it one more in a sweep of its own",
    )
    require(
        train.num_steps > at,
        f"target.tokens ({target.tokens}) must be more than are done ({at * train.batch_tokens})",
    )
    require(
        train.batch_tokens % target.sequence_length == 0,
        f"target.sequence_length: sequences of {target.sequence_length} tokens do not fill a batch "
        f"of {train.batch_tokens}; choose a divisor of {train.batch_tokens}",
    )
    weights, frac = dict(corpus.weights), at / train.num_steps
    stages = (
        DataStage(name="before", frac=frac, weights=weights),
        DataStage(
            name="long_context",
            frac=1 - frac,
            weights=weights,
            sequence_length=target.sequence_length,
        ),
    )
    change = StageConfig(
        name="long_context",
        rope_base=target.rope_base,
        yarn_factor=target.yarn_factor,
        balance_rate=target.balance_rate,
    )
    config = replace(first.corpus, stages=stages)
    prepared = prepare_corpus(config, data_dir)
    return replace(
        first,
        train=replace(train, stages=(change,)),
        corpus=config,
        corpus_fingerprint=prepared.fingerprint,
    )


def _require_same_rates(first: TrainConfig, second: TrainConfig, at: int) -> None:
    for step in range(0, at, max(1, at // RATES_COMPARED)):
        one, other = learning_rate(first, step), learning_rate(second, step)
        require(
            math.isclose(one, other, rel_tol=SAME_RATE),
            f"target: at step {step} the launched run's rate is {one:.4g}, the second stage's "
            f"would be {other:.4g}; give it more tokens",
        )


def _notes(target: SecondStage, launched: Promotion) -> tuple[str, ...]:
    rate = f"rate, batch and warm-up are those of {launched.id}, not of the laws at this budget"
    if not isinstance(target, Merge) and target.weights is not None:
        rate += (
            f"; begun with {target.weights}, which hold no moments of the optimizer: it begins "
            f"anew at step {target.at_step}, and no run of the fit did so"
        )
    if isinstance(target, Merge):
        return (
            rate,
            "an average of weights is not the fall of the rate that the law was fitted to",
        )
    if isinstance(target, ExtendContext):
        return (
            rate,
            "the forecast is for the sweep's sequence length; no law here speaks of a longer one, "
            "at which the run will be measured",
            "the longer sequences are drawn anew: some text that was read comes again early",
        )
    return (rate,)
